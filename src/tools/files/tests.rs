mod past;

use std::{
    os::unix::{
        fs::{PermissionsExt, symlink},
        net::UnixListener,
    },
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering},
};

use raddle_domain::{
    history::ToolCall,
    id::OperationId,
    policy::TenantRules,
    ports::{Judgement, Tools as _},
};

use super::{disk::crash, *};
use crate::tools::{
    Toolbox,
    bench::{invocation, key, operation, scene, settings},
};

/// A workspace with files, and beside it what must not be reached.
struct Ground {
    dir: tempfile::TempDir,
    spaces: Arc<Workspaces>,
    workspace: PathBuf,
}

/// What is outside.
const SECRET: &str = "hush";

impl Ground {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let spaces = Arc::new(Workspaces::open(&dir.path().join("root")).unwrap());
        std::fs::create_dir(dir.path().join("outside")).unwrap();
        std::fs::write(dir.path().join("outside/key"), SECRET).unwrap();
        let workspace = spaces.named(key().tenant, "w").unwrap().path().to_owned();
        Self { dir, spaces, workspace }
    }

    fn outside(&self) -> PathBuf {
        self.dir.path().join("outside")
    }

    fn at(&self, path: &str) -> PathBuf {
        self.workspace.join(path)
    }

    fn put(&self, path: &str, bytes: impl AsRef<[u8]>) {
        if let Some(above) = self.at(path).parent() {
            std::fs::create_dir_all(above).unwrap();
        }
        std::fs::write(self.at(path), bytes).unwrap();
    }

    fn get(&self, path: &str) -> Option<String> {
        std::fs::read_to_string(self.at(path)).ok()
    }

    fn run(&self, act: Act, operation: OperationId, arguments: Value) -> ToolEnd {
        let invocation = invocation(act.tool(), 0, 1, arguments);
        let invocation = Invocation { operation, workspace: Some("w".to_owned()), ..invocation };
        perform(act, &self.spaces, &invocation, &Stop::default())
    }

    /// A call with an operation of its own, which goes well.
    fn done(&self, act: Act, arguments: Value) -> String {
        match self.run(act, fresh(), arguments) {
            ToolEnd::Done(said) => said,
            other => panic!("{other:?}"),
        }
    }

    /// A call that fails, and changes nothing.
    fn fails(&self, act: Act, arguments: Value) -> String {
        let before = self.everything();
        let here = self.dir.path().to_str().unwrap();
        let is_known = arguments.to_string().contains(here);
        match self.run(act, fresh(), arguments) {
            ToolEnd::Failed(why) => {
                assert_eq!(self.everything(), before, "{why}");
                assert!(is_known || !why.contains(here), "shows where we live: {why}");
                why
            }
            other => panic!("{other:?}"),
        }
    }

    fn patch(&self, body: &str) -> Value {
        json!({"patch": format!("*** Begin Patch\n{body}\n*** End Patch")})
    }

    /// Every file, inside and outside, without what is staged; but not what a link leads to.
    fn everything(&self) -> Vec<(PathBuf, Vec<u8>)> {
        fn collect(path: &std::path::Path, into: &mut Vec<(PathBuf, Vec<u8>)>) {
            for entry in std::fs::read_dir(path).unwrap().map(Result::unwrap) {
                let (path, kind) = (entry.path(), entry.file_type().unwrap());
                if kind.is_dir() && entry.file_name() != ".raddle" {
                    into.push((path.clone(), Vec::new()));
                    collect(&path, into);
                } else if kind.is_file() && entry.metadata().unwrap().len() < 1 << 20 {
                    into.push((path.clone(), std::fs::read(path).unwrap()));
                }
            }
        }
        let mut all = Vec::new();
        collect(self.dir.path(), &mut all);
        all.sort();
        all
    }

    /// What a tool would read that joins and opens.
    fn naive(&self, path: &str) -> Option<String> {
        std::fs::read_to_string(self.workspace.join(path)).ok()
    }
}

/// An operation that no other call of this test has.
fn fresh() -> OperationId {
    thread_local! { static LAST: std::cell::Cell<u128> = const { std::cell::Cell::new(1 << 64) }; }
    LAST.set(LAST.get() + 1);
    OperationId::from_bytes(LAST.get().to_be_bytes())
}

fn path(path: &str) -> Value {
    json!({"path": path})
}

/// Every call that names a file, with this path.
fn calls(ground: &Ground, path: &str) -> Vec<(Act, Value)> {
    vec![
        (Act::Read, json!({"path": path})),
        (Act::Grep, json!({"path": path, "pattern": "."})),
        (Act::Write, json!({"path": path, "content": "mine"})),
        (Act::Edit, json!({"path": path, "old_string": "h", "new_string": "x"})),
        (Act::Patch, ground.patch(&format!("*** Update File: {path}\n@@\n-hush\n+mine"))),
        (Act::Patch, ground.patch(&format!("*** Delete File: {path}"))),
        (Act::Patch, ground.patch(&format!("*** Add File: {path}\n+mine"))),
        (Act::Patch, ground.patch(&format!("*** Update File: own\n*** Move to: {path}"))),
    ]
}

// ---- attacks: each leads to the secret where paths are only joined, and nowhere here ---------------------------

#[test]
fn no_path_leads_out_of_the_workspace() {
    let ground = Ground::new();
    ground.put("own", "mine");
    ground.put("sub/x", "");
    let outside = ground.outside();
    symlink(outside.join("key"), ground.at("file_link")).unwrap();
    symlink(&outside, ground.at("dir_link")).unwrap();
    symlink("../../../../outside", ground.at("relative_link")).unwrap();
    symlink("..", ground.at("sub/up")).unwrap();
    symlink("../../..", ground.at("sub/far_up")).unwrap();
    symlink("dir_link", ground.at("link_to_link")).unwrap();
    symlink("/", ground.at("slash")).unwrap();
    symlink("/proc/self/root", ground.at("magic")).unwrap();
    let absolute = outside.join("key").display().to_string();
    let other = ground.spaces.named("other".parse().unwrap(), "w").unwrap();
    std::fs::write(other.path().join("key"), SECRET).unwrap();
    let theirs = other.path().join("key").display().to_string();
    let sibling = ground.spaces.named(key().tenant, "w2").unwrap();
    std::fs::write(sibling.path().join("key"), SECRET).unwrap();
    symlink("../w2", ground.at("sibling")).unwrap();
    std::fs::create_dir(ground.dir.path().join("root/default/.raddle")).unwrap();
    std::fs::write(ground.dir.path().join("root/default/.raddle/key"), SECRET).unwrap();
    symlink("../.raddle", ground.at("notes")).unwrap();
    let attacks = [
        "../../../outside/key".to_owned(),
        "sub/../../../../outside/key".to_owned(),
        "./../../../outside/key".to_owned(),
        "../../other/w/key".to_owned(),
        "../w2/key".to_owned(),
        "../.raddle/key".to_owned(),
        "sub/up/../../../outside/key".to_owned(),
        absolute.clone(),
        format!("//{absolute}"),
        format!("/proc/self/root{absolute}"),
        theirs,
        "file_link".to_owned(),
        "dir_link/key".to_owned(),
        "dir_link//key".to_owned(),
        "link_to_link/key".to_owned(),
        "sibling/key".to_owned(),
        "notes/key".to_owned(),
        "sub/far_up/../outside/key".to_owned(),
        format!("slash{absolute}"),
        format!("magic{absolute}"),
    ];
    for attack in attacks {
        assert_eq!(ground.naive(&attack).as_deref(), Some(SECRET), "{attack}: this is no attack");
        for (act, arguments) in calls(&ground, &attack) {
            let why = ground.fails(act, arguments);
            let known = ["outside of the workspace", "`..`", "is absolute", "is a link"];
            assert!(known.iter().any(|known| why.contains(known)), "{} {attack}: {why}", act.tool());
        }
    }
    // The relative one leads too far up to lead anywhere; it is refused all the same.
    for (act, arguments) in calls(&ground, "relative_link/key") {
        ground.fails(act, arguments);
    }
}

#[test]
fn nothing_new_is_made_behind_a_link_that_leaves() {
    let ground = Ground::new();
    symlink(ground.outside(), ground.at("link")).unwrap();
    symlink(ground.outside().join("new"), ground.at("dangling")).unwrap();
    std::fs::write(ground.at("link/naive"), "").unwrap();
    assert!(ground.outside().join("naive").exists(), "this is no attack");
    std::fs::write(ground.at("dangling"), "").unwrap();
    std::fs::remove_file(ground.outside().join("new")).unwrap();
    for path in ["link/new", "link/a/b/new", "dangling", "dangling/new"] {
        ground.fails(Act::Write, json!({"path": path, "content": "x"}));
        ground.fails(Act::Patch, ground.patch(&format!("*** Add File: {path}\n+x")));
    }
}

#[test]
fn a_listing_and_a_search_do_not_follow_links() {
    let ground = Ground::new();
    ground.put("own", "hush, too\n");
    symlink(ground.outside(), ground.at("out")).unwrap();
    symlink(ground.outside().join("key"), ground.at("key")).unwrap();
    symlink(".", ground.at("round")).unwrap();
    let listed = ground.done(Act::List, json!({"depth": 10}));
    let outside = ground.outside().display().to_string();
    assert_eq!(listed, format!("key -> {outside}/key\nout -> {outside}\nown (10 bytes)\nround -> .\n"));
    assert_eq!(ground.done(Act::Grep, json!({"pattern": "hush"})), "own:1:hush, too\n");
    assert!(ground.fails(Act::List, path("out")).contains("outside of the workspace"));
    // What is named and stays inside is followed.
    assert!(ground.done(Act::List, path("round")).contains("own"));
}

/// A file, and a directory above one, that turn into links while they are looked at: what is read is the file, or
/// nothing; what is written is inside.
#[test]
fn a_link_put_there_between_the_look_and_the_use_leads_nowhere() {
    let ground = Ground::new();
    ground.put("d/key", "mine");
    symlink(ground.outside(), ground.at("link")).unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (here, flags) = (rustix::fs::CWD, rustix::fs::RenameFlags::EXCHANGE);
            while !done.load(Ordering::Relaxed) {
                rustix::fs::renameat_with(here, ground.at("d"), here, ground.at("link"), flags).unwrap();
            }
        });
        let (mut naive, mut rounds) = (0, 0);
        while rounds < 1_000 || (naive == 0 && rounds < 500_000) {
            rounds += 1;
            naive += u32::from(ground.naive("d/key").as_deref() == Some(SECRET));
            if let ToolEnd::Done(said) = ground.run(Act::Read, fresh(), path("d/key")) {
                assert_eq!(said, "1\tmine\n[the last line has no line end]\n");
            }
            if rounds % 10 == 0 {
                let _either = ground.run(Act::Write, fresh(), json!({"path": "d/key", "content": "mine"}));
                let _either = ground.run(Act::Write, fresh(), json!({"path": "d/new", "content": "mine"}));
                let said = ground.run(Act::Grep, fresh(), json!({"pattern": SECRET}));
                assert!(!format!("{said:?}").contains("key:1:"), "{said:?}");
            }
        }
        done.store(true, Ordering::Relaxed);
        assert!(naive > 0, "this was no attack");
    });
    let outside: Vec<_> =
        std::fs::read_dir(ground.outside()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(outside, ["key"]);
    assert_eq!(std::fs::read_to_string(ground.outside().join("key")).unwrap(), SECRET);
}

#[test]
fn a_hard_link_can_be_read_and_what_it_names_cannot_be_changed_through_it() {
    let ground = Ground::new();
    std::fs::hard_link(ground.outside().join("key"), ground.at("key")).unwrap();
    // Nothing tells it from the file's other name.
    assert!(ground.done(Act::Read, path("key")).starts_with("1\thush"));
    ground.done(Act::Write, json!({"path": "key", "content": "mine"}));
    assert_eq!(ground.get("key").as_deref(), Some("mine"));
    assert_eq!(std::fs::read_to_string(ground.outside().join("key")).unwrap(), SECRET);
}

#[test]
fn names_that_are_none_are_refused() {
    let ground = Ground::new();
    ground.put("own", "");
    let (long, deep) = ("x".repeat(256), vec!["x"; 1100].join("/"));
    for (name, why) in [
        ("own\0", "control character"),
        ("a\nb", "control character"),
        ("\u{7f}", "control character"),
        (&long, "too long"),
        (&deep, "too long"),
    ] {
        for (act, arguments) in calls(&ground, name) {
            // A line end ends a line of a patch: what is behind it is another line, and not a name.
            if act != Act::Patch || !name.contains('\n') {
                let said = ground.fails(act, arguments);
                assert!(said.contains(why), "{name:?}: {said}");
            }
        }
    }
    for name in [".", "", "./."] {
        assert!(ground.fails(Act::Read, path(name)).contains("is a directory"));
        assert!(ground.fails(Act::Write, json!({"path": name, "content": ""})).contains("names no file"));
    }
}

#[test]
fn one_file_has_one_name_however_it_is_spelled() {
    let ground = Ground::new();
    ground.put("a/File", "x\n");
    for name in ["a/File", "./a/File", "a//File", "a/./File", "a/File/"] {
        assert_eq!(ground.done(Act::Read, path(name)), "1\tx\n", "{name}");
    }
    // Letters in another case are other names, where the disk tells them apart.
    assert!(ground.fails(Act::Read, path("a/file")).contains("there is no"));
    symlink("a", ground.at("alias")).unwrap();
    let twice = ground.patch("*** Update File: a/File\n@@\n-x\n+y\n*** Update File: alias/./File\n@@\n-x\n+z");
    assert!(ground.fails(Act::Patch, twice).contains("each file once"));
}

#[test]
fn what_is_no_regular_file_is_neither_waited_for_nor_touched() {
    let ground = Ground::new();
    ground.put("own", "x");
    let fifo = rustix::fs::FileType::Fifo;
    rustix::fs::mknodat(rustix::fs::CWD, ground.at("pipe"), fifo, 0o600.into(), 0).unwrap();
    let _listener = UnixListener::bind(ground.at("socket")).unwrap();
    let device = rustix::fs::makedev(1, 5);
    let kind = rustix::fs::FileType::CharacterDevice;
    let has_device = rustix::fs::mknodat(rustix::fs::CWD, ground.at("zero"), kind, 0o600.into(), device).is_ok();
    std::fs::create_dir(ground.at("dir")).unwrap();
    let mut others = vec![("pipe", "no regular file"), ("socket", "no regular file"), ("dir", "is a directory")];
    // Only root can make one.
    others.extend(has_device.then_some(("zero", "no regular file")));
    for (name, why) in others {
        for (act, arguments) in calls(&ground, name) {
            if (act, name) != (Act::Grep, "dir") {
                let said = ground.fails(act, arguments);
                assert!(said.contains(why), "{} {name}: {said}", act.tool());
            }
        }
    }
    assert_eq!(ground.done(Act::Grep, json!({"pattern": "."})), "own:1:x\n");
    assert!(ground.done(Act::List, json!({})).contains("pipe (no regular file)\n"));
}

// ---- reading -------------------------------------------------------------------------------------

#[test]
fn lines_are_shown_with_their_numbers_and_what_is_left_out_is_said() {
    let ground = Ground::new();
    let long: String = (1..=5_000).map(|line| format!("line {line}\n")).collect();
    ground.put("long", &long);
    let said = ground.done(Act::Read, path("long"));
    assert!(said.starts_with("1\tline 1\n2\tline 2\n"));
    assert!(said.ends_with("2000\tline 2000\n[cut after line 2000 of 5000: go on with offset 2001]\n"));
    let said = ground.done(Act::Read, json!({"path": "long", "offset": 4_999}));
    assert_eq!(said, "4999\tline 4999\n5000\tline 5000\n");
    let said = ground.done(Act::Read, json!({"path": "long", "offset": 3, "limit": 1}));
    assert_eq!(said, "3\tline 3\n[cut after line 3 of 5000: go on with offset 4]\n");
    assert!(ground.fails(Act::Read, json!({"path": "long", "offset": 5_001})).contains("has only 5000 lines"));
    ground.put("wide", "x".repeat(1 << 20));
    let said = ground.done(Act::Read, path("wide"));
    assert!(said.contains("… [the line has 1048576 bytes]") && said.len() < 3_000, "{}", said.len());
    ground.put("wide", format!("{}\n", "y".repeat(1_900)).repeat(100));
    let said = ground.done(Act::Read, path("wide"));
    assert!(said.len() < 66_000 && said.contains("of 100: go on with offset 35"), "{}", &said[said.len() - 100..]);
}

#[test]
fn a_file_says_what_is_odd_about_it() {
    let ground = Ground::new();
    for (bytes, said) in [
        (&b""[..], "[the file is empty]\n"),
        (b"a", "1\ta\n[the last line has no line end]\n"),
        (b"a\r\nb\r\n", "1\ta\n2\tb\n[lines end in CR LF]\n"),
        (b"caf\xe9\n", "1\tcaf\u{fffd}\n[some bytes are not UTF-8, and shown as \u{fffd}]\n"),
        (b"\x7fELF\0\0", "[a binary file of 6 bytes: not shown]"),
        (b"\n\n", "1\t\n2\t\n"),
    ] {
        ground.put("f", bytes);
        assert_eq!(ground.done(Act::Read, path("f")), said);
    }
}

#[test]
fn a_huge_file_is_not_read_whole_and_not_changed() {
    let ground = Ground::new();
    ground.put("huge", "one\ntwo\n");
    std::fs::File::options().write(true).open(ground.at("huge")).unwrap().set_len(1 << 40).unwrap();
    assert!(ground.done(Act::Read, path("huge")).contains("binary file of 1099511627776 bytes"));
    assert_eq!(
        ground.done(Act::Grep, json!({"pattern": "one"})),
        "[no match]\n[1 files of more than 16777216 bytes were passed by]\n"
    );
    for (act, arguments) in calls(&ground, "huge").into_iter().skip(2).take(4) {
        assert!(ground.fails(act, arguments).contains("not changed here"), "{}", act.tool());
    }
}

#[test]
fn a_search_is_bounded_and_says_so() {
    let ground = Ground::new();
    for number in 0..5 {
        ground.put(&format!("d{number}/a.rs"), "needle\n".repeat(100));
        ground.put(&format!("d{number}/b.txt"), "needle\n");
    }
    ground.put(".git/config", "needle\n");
    ground.put("binary", "needle\0");
    let said = ground.done(Act::Grep, json!({"pattern": "needle"}));
    assert!(said.starts_with("d0/a.rs:1:needle\n") && said.ends_with("[cut after 100 matches: there may be more]\n"));
    assert_eq!(said.lines().count(), 101);
    let said = ground.done(Act::Grep, json!({"pattern": "NEED.E$", "glob": "*.txt", "ignore_case": true}));
    assert_eq!(said, (0..5).map(|number| format!("d{number}/b.txt:1:needle\n")).collect::<String>());
    let said = ground.done(Act::Grep, json!({"pattern": "needle", "glob": "d[12]/*.txt"}));
    assert_eq!(said, "d1/b.txt:1:needle\nd2/b.txt:1:needle\n");
    let said = ground.done(Act::Grep, json!({"pattern": "needle", "path": "d3", "max": 1, "glob": "a*"}));
    assert_eq!(said, "d3/a.rs:1:needle\n[cut after 1 matches: there may be more]\n");
    let said = ground.done(Act::Grep, json!({"pattern": "needle", "path": "d3/b.txt"}));
    assert_eq!(said, "d3/b.txt:1:needle\n");
    assert!(ground.fails(Act::Grep, json!({"pattern": "("})).contains("no regular expression"));
    assert!(ground.fails(Act::Grep, json!({"pattern": "((a{100}){100}){100}"})).contains("no regular expression"));
    assert!(ground.fails(Act::Grep, json!({"pattern": "x", "glob": "["})).contains("no glob"));
}

#[test]
fn a_call_that_is_given_up_stops_and_changes_nothing() {
    let ground = Ground::new();
    ground.put("a", "x\n");
    let stop = Stop::default();
    stop.ask();
    let run = |act: Act, arguments| {
        let invocation = Invocation { workspace: Some("w".to_owned()), ..invocation(act.tool(), 1, 1, arguments) };
        perform(act, &ground.spaces, &invocation, &stop)
    };
    let ToolEnd::Done(said) = run(Act::Grep, json!({"pattern": "x"})) else { panic!() };
    assert!(said.contains("stopped"), "{said}");
    let end = run(Act::Write, json!({"path": "a", "content": "y"}));
    assert_eq!(end, ToolEnd::Failed("given up before anything was changed".to_owned()));
    assert_eq!(ground.get("a").as_deref(), Some("x\n"));
}

// ---- changing ------------------------------------------------------------------------------------

#[test]
fn a_file_is_written_whole_and_keeps_its_permissions() {
    let ground = Ground::new();
    let said = ground.done(Act::Write, json!({"path": "a/b/c.txt", "content": "one\n"}));
    assert_eq!(said, "made a/b/c.txt: 4 bytes\n--- /dev/null\n+++ b/a/b/c.txt\n@@ -0,0 +1 @@\n+one\n");
    std::fs::set_permissions(ground.at("a/b/c.txt"), PermissionsExt::from_mode(0o751)).unwrap();
    let said = ground.done(Act::Write, json!({"path": "a/b/c.txt", "content": "two\n"}));
    assert!(said.starts_with("wrote a/b/c.txt: 4 bytes\n") && said.contains("-one\n+two\n"), "{said}");
    assert_eq!(ground.get("a/b/c.txt").as_deref(), Some("two\n"));
    assert_eq!(ground.at("a/b/c.txt").metadata().unwrap().permissions().mode() & 0o7777, 0o751);
    // Nothing is left beside it.
    assert_eq!(std::fs::read_dir(ground.at("a/b")).unwrap().count(), 1);
    let said = ground.done(Act::Write, json!({"path": "a/b/c.txt", "content": "two\n"}));
    assert!(said.contains("nothing is different"), "{said}");
    assert!(ground.fails(Act::Write, json!({"path": "a/b/c.txt/d", "content": ""})).contains("not a directory"));
}

#[test]
fn a_link_inside_is_written_through() {
    let ground = Ground::new();
    ground.put("real/f", "x\n");
    symlink("real/f", ground.at("link")).unwrap();
    symlink("real", ground.at("dir")).unwrap();
    assert!(ground.done(Act::Edit, json!({"path": "link", "old_string": "x", "new_string": "y"})).contains("real/f"));
    ground.done(Act::Write, json!({"path": "dir/new/g", "content": "z"}));
    assert!(ground.at("link").is_symlink());
    assert_eq!((ground.get("real/f").as_deref(), ground.get("real/new/g").as_deref()), (Some("y\n"), Some("z")));
    // A name goes or stays; whether a link or its file is meant has to be said.
    for body in ["*** Delete File: link", "*** Update File: link\n*** Move to: other", "*** Add File: link\n+x"] {
        assert!(ground.fails(Act::Patch, ground.patch(body)).contains("is a link"), "{body}");
    }
}

#[test]
fn an_edit_that_fits_nowhere_or_twice_changes_nothing() {
    let ground = Ground::new();
    ground.put("f", "x\ny\nx\n");
    let edit = |old: &str| json!({"path": "f", "old_string": old, "new_string": "z"});
    assert!(ground.fails(Act::Edit, edit("x")).contains("`f`: `old_string` is in the file 2 times, on lines 1, 3"));
    assert!(ground.fails(Act::Edit, edit("q")).contains("is not in the file"));
    assert!(
        ground.fails(Act::Edit, json!({"path": "g", "old_string": "a", "new_string": "b"})).contains("there is no `g`")
    );
    ground.put("crlf", "a\r\nb\r\n");
    ground.done(Act::Edit, json!({"path": "crlf", "old_string": "a\nb", "new_string": "c\nd\ne"}));
    assert_eq!(ground.get("crlf").as_deref(), Some("c\r\nd\r\ne\r\n"));
}

#[test]
fn a_patch_changes_all_of_its_files() {
    let ground = Ground::new();
    ground.put("src/a.rs", "fn a() {}\n");
    ground.put("old.txt", "1\n2\n");
    ground.put("gone", "bye\n");
    std::fs::set_permissions(ground.at("old.txt"), PermissionsExt::from_mode(0o700)).unwrap();
    let said = ground.done(
        Act::Patch,
        ground.patch(
            "*** Update File: src/a.rs\n@@\n-fn a() {}\n+fn b() {}\n*** Delete File: gone\n*** Add File: docs/n.md\n+# n\n\
             *** Update File: old.txt\n*** Move to: new/name.txt\n@@\n 1\n-2\n+3",
        ),
    );
    let done = "changed src/a.rs\nremoved gone\nmade docs/n.md\nmoved old.txt to new/name.txt\n";
    assert!(said.starts_with(done) && said.contains("+++ b/docs/n.md"), "{said}");
    let now = |path| ground.get(path);
    assert_eq!((now("src/a.rs").as_deref(), now("docs/n.md").as_deref()), (Some("fn b() {}\n"), Some("# n\n")));
    assert_eq!((now("gone"), now("old.txt"), now("new/name.txt").as_deref()), (None, None, Some("1\n3\n")));
    assert_eq!(ground.at("new/name.txt").metadata().unwrap().permissions().mode() & 0o777, 0o700);
}

#[test]
fn a_patch_of_which_one_file_does_not_fit_changes_none() {
    let ground = Ground::new();
    ground.put("a", "1\n");
    ground.put("b", "2\n");
    symlink(ground.outside(), ground.at("out")).unwrap();
    for (bad, why) in [
        ("*** Update File: b\n@@\n-3\n+4", "hunk 1 does not fit"),
        ("*** Update File: nothing\n@@\n-3\n+4", "there is no `nothing`"),
        ("*** Add File: b\n+x", "is there already"),
        ("*** Delete File: c", "there is no `c`"),
        ("*** Update File: b\n*** Move to: a/b", "is not a directory"),
        ("*** Update File: b\n*** Move to: out/key2", "outside of the workspace"),
        ("*** Delete File: out/key", "outside of the workspace"),
        ("*** Add File: ../x\n+x", "`..`"),
        ("*** Add File: x/y\n+x\n*** Add File: x\n+x", "each file once"),
        ("*** Update File: a\n@@\n-1\n+3", "each file once"),
    ] {
        let said = ground.fails(Act::Patch, ground.patch(&format!("*** Update File: a\n@@\n-1\n+9\n{bad}")));
        assert!(said.contains(why), "{bad}: {said}");
    }
}

#[test]
fn a_change_of_somebody_else_is_not_overwritten() {
    let ground = Ground::new();
    ground.put("a", "1\n");
    ground.put("b", "2\n");
    let workspace = ground.spaces.named(key().tenant, "w").unwrap();
    let notes = ground.spaces.notes(key().tenant).unwrap();
    let patch = Patch {
        patch: "*** Begin Patch\n*** Update File: a\n@@\n-1\n+9\n*** Update File: b\n@@\n-2\n+9\n*** End Patch".into(),
    };
    let ended = change::change(&notes, operation(7), &workspace, &Stop::default(), || {
        let plan = plan_patch(&workspace, &patch);
        ground.put("b", "theirs\n");
        plan
    });
    assert!(ended.unwrap_err().to_string().contains("`b` was changed by somebody else"));
    // What was put in place before it was noticed is taken back.
    assert_eq!((ground.get("a").as_deref(), ground.get("b").as_deref()), (Some("1\n"), Some("theirs\n")));
    // And the operation was not decided on: it may be tried again.
    ground.put("b", "2\n");
    let again = change::change(&notes, operation(7), &workspace, &Stop::default(), || plan_patch(&workspace, &patch));
    assert!(again.is_ok());
    assert_eq!((ground.get("a").as_deref(), ground.get("b").as_deref()), (Some("9\n"), Some("9\n")));
}

// ---- crashes -------------------------------------------------------------------------------------

/// Ends the process at each place in turn, and runs the operation again.
#[test]
fn a_change_that_a_crash_cuts_off_is_made_once_and_whole() {
    let patch =
        "*** Update File: log\n@@\n+line\n*** Update File: a\n@@\n-1\n+2\n*** Add File: new\n+n\n*** Delete File: gone";
    for (act, arguments) in [
        // Done twice, each of these would show: there would be two lines.
        (Act::Edit, json!({"path": "log", "old_string": "end", "new_string": "line\nend"})),
        (Act::Patch, Ground::new().patch(patch)),
        (Act::Write, json!({"path": "log", "content": "first\nline\nend\n"})),
    ] {
        let ground = || {
            let ground = Ground::new();
            ground.put("log", "first\nend\n");
            ground.put("a", "1\n");
            ground.put("gone", "x\n");
            ground
        };
        let names = ["log", "a", "new", "gone"];
        let files = |ground: &Ground| names.map(|name| ground.get(name));
        let whole = ground();
        let before = files(&whole);
        let said = whole.run(act, operation(1), arguments.clone());
        let after = files(&whole);
        let mut crashes = 0;
        for at in 0.. {
            let ground = ground();
            let ended = crash::after(at, || ground.run(act, operation(1), arguments.clone()));
            for ((now, old), new) in files(&ground).iter().zip(&before).zip(&after) {
                assert!(now == old || now == new, "{act:?} at {at}: torn: {now:?}");
            }
            // As often as it is cut off: here a second time, a little later.
            let _again = crash::after(at / 2, || ground.run(act, operation(1), arguments.clone()));
            assert_eq!(ground.run(act, operation(1), arguments.clone()), said, "{act:?} at {at}");
            assert_eq!(files(&ground), after, "{act:?} at {at}");
            // Later runs of the same operation do nothing, whatever became of the files.
            ground.put("log", "later\n");
            let last = ground.run(act, operation(1), arguments.clone());
            assert!(matches!(last, ToolEnd::Unknown(_)) && ground.get("log").as_deref() == Some("later\n"), "{last:?}");
            if ended.is_some() {
                break;
            }
            crashes += 1;
        }
        assert!(crashes >= 4, "{act:?} has {crashes} places to crash at");
    }
}

/// The same for a change that is refused half way and taken back.
#[test]
fn a_change_that_is_taken_back_is_not_left_in_part_by_a_crash() {
    let patch = Patch {
        patch: "*** Begin Patch\n*** Update File: a\n@@\n-1\n+9\n*** Update File: b\n@@\n-2\n+9\n*** End Patch".into(),
    };
    for at in 0.. {
        let ground = Ground::new();
        ground.put("a", "1\n");
        ground.put("b", "2\n");
        let workspace = ground.spaces.named(key().tenant, "w").unwrap();
        let notes = ground.spaces.notes(key().tenant).unwrap();
        let run = |meanwhile: &str| {
            change::change(&notes, operation(7), &workspace, &Stop::default(), || {
                let plan = plan_patch(&workspace, &patch);
                ground.put("b", meanwhile);
                plan
            })
        };
        let ended = crash::after(at, || run("theirs\n"));
        // Cut off a second time, in what the next run does about the first.
        let _again = crash::after(at % 3, || run("theirs\n"));
        let why = run("theirs\n").unwrap_err();
        let now = if matches!(why, Fault::Torn(_)) { "9\n" } else { "1\n" };
        assert_eq!(ground.get("a").as_deref(), Some(now), "at {at}: {why}");
        assert_eq!(ground.get("b").as_deref(), Some("theirs\n"), "at {at}");
        ground.put("b", "2\n");
        assert!(run("2\n").is_ok(), "at {at}");
        assert_eq!((ground.get("a").as_deref(), ground.get("b").as_deref()), (Some("9\n"), Some("9\n")), "at {at}");
        if ended.is_some() {
            assert!(at >= 12, "there are {at} places to crash at");
            break;
        }
    }
}

// ---- as a tool -----------------------------------------------------------------------------------

#[test]
fn they_are_offered_where_there_is_a_workspace() {
    let ground = Ground::new();
    let toolbox = Toolbox::new(tools(&ground.spaces), false).unwrap();
    let settings = settings();
    let offered = |workspace| {
        let scene = Scene { workspace, ..scene(&settings) };
        toolbox.specs(scene).into_iter().map(|spec| spec.name.clone()).collect::<Vec<_>>()
    };
    let all = ["read_file", "list_dir", "grep", "write_file", "edit_file", "apply_patch", "ask_user"];
    assert_eq!(offered(None), all);
    assert_eq!(offered(Some("w")), all);
    assert_eq!(offered(Some("../w")), ["ask_user"]);
    assert_eq!(offered(Some("/elsewhere")), ["ask_user"]);
}

#[test]
fn a_call_is_judged_before_anybody_is_asked() {
    let ground = Ground::new();
    let toolbox = Toolbox::new(tools(&ground.spaces), false).unwrap();
    let settings = settings();
    let judged = |name: &str, arguments: Value| {
        let call = ToolCall { call_id: "c".into(), name: name.into(), arguments: arguments.to_string() };
        toolbox.judge(&call, scene(&settings), &TenantRules::default())
    };
    let Judgement::Run(planned) = judged("edit_file", json!({"path": "a", "old_string": "b", "new_string": "c"}))
    else {
        panic!()
    };
    assert_eq!((planned.kind, planned.class, planned.gate), (ItemKind::FileChange, EffectClass::Idempotent, Gate::Ask));
    assert_eq!(planned.reason, "it replaces text in `a`");
    let Judgement::Run(planned) = judged("grep", json!({"pattern": "x"})) else { panic!() };
    assert_eq!((planned.kind, planned.class, planned.gate), (ItemKind::ToolCall, EffectClass::Read, Gate::Open));
    for (name, arguments) in [
        ("read_file", json!({})),
        ("read_file", json!({"path": 1})),
        ("read_file", json!({"path": "a", "offset": 0})),
        ("read_file", json!({"path": "a", "more": true})),
        ("read_file", json!({"path": "a".repeat(3_000)})),
        ("edit_file", json!({"path": "a", "old_string": "", "new_string": "c"})),
        ("write_file", json!({"path": "a"})),
        ("apply_patch", json!({"patch": "x".repeat(TEXT_CHARS + 1)})),
    ] {
        assert!(matches!(judged(name, arguments.clone()), Judgement::Invalid(_)), "{name} {arguments:.80}");
    }
}

#[test]
fn a_path_has_one_spelling_for_rules_and_a_link_has_two() {
    let ground = Ground::new();
    ground.put("secrets/key", "");
    symlink("secrets", ground.at("alias")).unwrap();
    symlink("alias/key", ground.at("link")).unwrap();
    let settings = settings();
    let paths = |path: &str| {
        let tool = FileTool { spaces: ground.spaces.clone(), act: Act::Read };
        tool.paths(&json!({"path": path}), Scene { workspace: Some("w"), ..scene(&settings) })
    };
    for path in ["secrets/key", "./secrets//key", "secrets/./key/"] {
        assert_eq!(paths(path), ["secrets/key"]);
    }
    assert_eq!(paths("alias/key"), ["alias/key", "secrets/key"]);
    assert_eq!(paths("link"), ["link", "secrets/key"]);
    assert_eq!(paths("alias/new/file"), ["alias/new/file", "secrets/new/file"]);
    assert_eq!(paths("../x"), ["../x"]);
    // Nothing is made by asking.
    let tool = FileTool { spaces: ground.spaces.clone(), act: Act::Read };
    assert_eq!(tool.paths(&json!({"path": "a"}), scene(&settings)), ["a"]);
    assert!(!ground.dir.path().join("root/default/threads").exists());
}

#[test]
fn hooks_and_settings_of_version_control_are_read_and_not_changed() {
    let ground = Ground::new();
    ground.put("sub/.git/config", "hush\n");
    ground.put("own", "mine\n");
    symlink("sub/.git", ground.at("alias")).unwrap();
    for path in ["sub/.git/config", "alias/config", "sub/.git/hooks/pre-commit", "alias/hooks/new", ".GIT/config"] {
        for (act, arguments) in calls(&ground, path).into_iter().skip(2) {
            let why = ground.fails(act, arguments);
            assert!(why.contains("belongs to version control"), "{} {path}: {why}", act.tool());
        }
    }
    assert_eq!(ground.done(Act::Read, path("alias/config")), "1\thush\n");
    ground.done(Act::Write, json!({"path": ".gitignore", "content": "target\n"}));
}

#[test]
fn a_call_tells_which_paths_it_names() {
    let paths = |act: Act, arguments: Value| act.paths(&arguments);
    assert_eq!(paths(Act::Write, json!({"path": "a/b"})), ["a/b"]);
    assert_eq!(paths(Act::Grep, json!({"pattern": "x"})), ["."]);
    let patch = "*** Begin Patch\n*** Update File: a\n*** Move to: b\n*** Add File: c\n+x\n*** End Patch";
    assert_eq!(paths(Act::Patch, json!({"patch": patch})), ["a", "b", "c"]);
}
