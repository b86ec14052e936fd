//! What tools did for a run, and taking it back.

use std::{collections::BTreeSet, time::Duration};

use raddle_domain::{
    id::{RunId, TenantId},
    ports::{ChangedFile, Content, FilesChanged, Restore, Restored},
};

use super::{
    super::{blobs, disk::digest, past},
    *,
};

impl Ground {
    /// A call for a run.
    fn work(&self, act: Act, operation: OperationId, arguments: Value) -> ToolEnd {
        let run = Some(RunId::from_bytes([1; 16]));
        let invocation = invocation(act.tool(), 0, 1, arguments);
        let invocation = Invocation { operation, run, workspace: Some("w".to_owned()), ..invocation };
        perform(act, &self.spaces, &invocation, &Stop::default())
    }

    /// A call for a run, which goes well, and what it is told to have changed.
    fn worked(&self, act: Act, arguments: Value) -> FilesChanged {
        let operation = fresh();
        let end = self.work(act, operation, arguments);
        assert!(matches!(end, ToolEnd::Done(_)), "{end:?}");
        self.changed(operation).expect("it changed something")
    }

    fn changed(&self, operation: OperationId) -> Option<FilesChanged> {
        past::changed(&self.spaces, key().tenant, operation).unwrap()
    }

    fn restore_as(&self, operation: OperationId, changed: &FilesChanged) -> Restored {
        let FilesChanged { workspace, files } = changed.clone();
        let restore = Restore { tenant: key().tenant, operation, workspace, files };
        past::restored(&self.spaces, &restore, &Stop::default())
    }

    fn restore(&self, changed: &FilesChanged) -> Restored {
        self.restore_as(fresh(), changed)
    }

    /// A restoring that is refused, and touches nothing.
    fn refuses(&self, changed: &FilesChanged) -> String {
        let before = self.everything();
        let Restored::Refused(why) = self.restore(changed) else { panic!("not refused: {changed:?}") };
        assert_eq!(self.everything(), before, "{why}");
        why
    }

    fn notes(&self) -> PathBuf {
        self.dir.path().join("root/default/.raddle")
    }

    fn blob(&self, text: &str) -> PathBuf {
        let digest = digest(text.as_bytes());
        self.notes().join("blobs").join(&digest[..2]).join(digest)
    }

    /// The names of all blobs, and of what was to become one.
    fn blobs(&self) -> BTreeSet<String> {
        let Ok(drawers) = std::fs::read_dir(self.notes().join("blobs")) else { return BTreeSet::new() };
        let within = |drawer: PathBuf| std::fs::read_dir(drawer).unwrap().map(|blob| blob.unwrap().file_name());
        let names = drawers.flat_map(|drawer| within(drawer.unwrap().path()));
        names.map(|name| name.into_string().unwrap()).collect()
    }

    fn mode(&self, path: &str) -> u32 {
        self.at(path).metadata().unwrap().permissions().mode() & 0o7777
    }

    fn set_mode(&self, path: &str, mode: u32) {
        std::fs::set_permissions(self.at(path), PermissionsExt::from_mode(mode)).unwrap();
    }
}

fn content(text: &str) -> Option<Content> {
    Some(Content { sha256: digest(text.as_bytes()), bytes: text.len() as u64 })
}

fn changed_file(path: &str, before: Option<&str>, after: Option<&str>) -> ChangedFile {
    let [before, after] = [before, after].map(|text| text.and_then(content));
    ChangedFile { path: path.to_owned(), mode: before.as_ref().map(|_| 0o644), before, after }
}

fn of_w(files: Vec<ChangedFile>) -> FilesChanged {
    FilesChanged { workspace: "w".to_owned(), files }
}

fn write(path: &str, content: &str) -> Value {
    json!({"path": path, "content": content})
}

/// Changes a file, makes one, moves one and removes one.
const PATCH: &str = "*** Update File: a\n@@\n-1\n+2\n*** Add File: new/b\n+n\n*** Update File: c\n*** Move to: d\n@@\n\
                     -3\n+4\n*** Delete File: gone";

fn ready() -> Ground {
    let ground = Ground::new();
    for (path, text, mode) in [("a", "1\n", 0o640), ("c", "3\n", 0o755), ("gone", "x\n", 0o600)] {
        ground.put(path, text);
        ground.set_mode(path, mode);
    }
    ground
}

const NAMES: [&str; 5] = ["a", "new/b", "c", "d", "gone"];
const BEFORE: [Option<&str>; 5] = [Some("1\n"), None, Some("3\n"), None, Some("x\n")];
const AFTER: [Option<&str>; 5] = [Some("2\n"), Some("n\n"), None, Some("4\n"), None];

fn stand(ground: &Ground) -> [Option<String>; 5] {
    NAMES.map(|name| ground.get(name))
}

fn texts(texts: [Option<&str>; 5]) -> [Option<String>; 5] {
    texts.map(|text| text.map(str::to_owned))
}

// ---- what was done -------------------------------------------------------------------------------

#[test]
fn a_change_is_told_by_its_files_and_what_they_were_and_became() {
    let ground = ready();
    let changed = ground.worked(Act::Patch, ground.patch(PATCH));
    let mut expected: Vec<_> = (0..5).map(|file| changed_file(NAMES[file], BEFORE[file], AFTER[file])).collect();
    for (file, mode) in [(0, 0o640), (2, 0o755), (4, 0o600)] {
        expected[file].mode = Some(mode);
    }
    let mut told = changed.files.clone();
    told.sort_by_key(|file| NAMES.iter().position(|name| *name == file.path));
    assert_eq!((changed.workspace.as_str(), told), ("w", expected));
}

#[test]
fn a_file_has_its_own_name_in_what_is_told_and_a_workspace_one_by_which_it_is_found() {
    let ground = Ground::new();
    ground.put("real/f", "x\n");
    symlink("real", ground.at("alias")).unwrap();
    let changed = ground.worked(Act::Write, write("alias/./f", "y\n"));
    assert_eq!(changed.files, [changed_file("real/f", Some("x\n"), Some("y\n"))]);
    symlink("w", ground.workspace.parent().unwrap().join("other-name")).unwrap();
    let absolute = ground.workspace.display().to_string();
    for (workspace, name) in [
        (Some("./w/"), "w".to_owned()),
        (Some(&*absolute), "w".to_owned()),
        (Some("other-name"), "w".to_owned()),
        (Some("team/api"), "team/api".to_owned()),
        (None, crate::workspace::own(key().thread)),
    ] {
        let invocation = invocation("write_file", 0, 1, write("g", &format!("{workspace:?}")));
        let (operation, run) = (fresh(), Some(RunId::from_bytes([1; 16])));
        let workspace = workspace.map(str::to_owned);
        let invocation = Invocation { operation, run, workspace, ..invocation };
        assert!(matches!(perform(Act::Write, &ground.spaces, &invocation, &Stop::default()), ToolEnd::Done(_)));
        let changed = ground.changed(operation).unwrap();
        assert_eq!(changed.workspace, name);
        assert_eq!(ground.restore(&changed), Restored::Done);
    }
}

#[test]
fn what_was_not_changed_not_decided_or_taken_back_is_not_told() {
    let ground = Ground::new();
    ground.put("a", "1\n");
    ground.put("b", "2\n");
    let [same, failed, given_up, refused] = [(); 4].map(|()| fresh());
    assert!(matches!(ground.work(Act::Write, same, write("a", "1\n")), ToolEnd::Done(_)));
    let edit = json!({"path": "a", "old_string": "9", "new_string": "8"});
    assert!(matches!(ground.work(Act::Edit, failed, edit), ToolEnd::Failed(_)));
    let workspace = ground.spaces.named(key().tenant, "w").unwrap();
    let notes = ground.spaces.notes(key().tenant).unwrap();
    let body = "*** Begin Patch\n*** Update File: a\n@@\n-1\n+9\n*** Update File: b\n@@\n-2\n+9\n*** End Patch";
    let run = |operation, stop: &Stop, meanwhile: &str| {
        change::change(&notes, operation, &workspace, stop, || {
            let plan = plan_patch(&workspace, &Patch { patch: body.into() });
            ground.put("b", meanwhile);
            plan.map(|plan| Plan { keeps: true, ..plan })
        })
    };
    let stop = Stop::default();
    stop.ask();
    assert!(run(given_up, &stop, "2\n").is_err());
    assert!(run(refused, &Stop::default(), "theirs\n").is_err());
    for operation in [same, failed, given_up, refused] {
        assert_eq!(ground.changed(operation), None);
    }
    assert_eq!(ground.get("a").as_deref(), Some("1\n"));
}

#[test]
fn who_asks_for_what_is_not_there_makes_nothing_and_another_tenant_finds_nothing() {
    let ground = Ground::new();
    let operation = fresh();
    let made = |ground: &Ground| {
        let mut made: Vec<PathBuf> = ground.everything().into_iter().map(|(path, _)| path).collect();
        made.extend(ground.notes().join("ops").read_dir().into_iter().flatten().map(|entry| entry.unwrap().path()));
        made
    };
    let before = made(&ground);
    assert_eq!(ground.changed(operation), None);
    let other: TenantId = "other".parse().unwrap();
    assert_eq!(past::changed(&ground.spaces, other, operation).unwrap(), None);
    assert!(made(&ground) == before && !ground.notes().exists());
    ground.put("a", "1\n");
    assert!(matches!(ground.work(Act::Write, operation, write("a", "2\n")), ToolEnd::Done(_)));
    let changed = ground.changed(operation).unwrap();
    let before = made(&ground);
    assert_eq!(ground.changed(fresh()), None);
    assert_eq!(past::changed(&ground.spaces, other, operation).unwrap(), None);
    // Nor does it get at what was kept, in a workspace of its own that looks the same.
    let FilesChanged { workspace, files } = changed.clone();
    let restore = Restore { tenant: other, operation: fresh(), workspace, files };
    let restored = past::restored(&ground.spaces, &restore, &Stop::default());
    assert_eq!(restored, Restored::Refused("there is no workspace `w`".to_owned()));
    assert_eq!(made(&ground), before);
    let theirs = ground.spaces.named(other, "w").unwrap();
    std::fs::write(theirs.path().join("a"), "2\n").unwrap();
    let Restored::Refused(why) = past::restored(&ground.spaces, &restore, &Stop::default()) else { panic!() };
    assert_eq!(why, "what `a` held was not kept, or is not kept any more");
    assert_eq!(std::fs::read_to_string(theirs.path().join("a")).unwrap(), "2\n");
    assert_eq!(ground.restore(&changed), Restored::Done);
}

/// As it was noted before anybody wanted to know.
#[test]
fn an_old_note_is_gone_on_with_and_tells_nothing() {
    let ground = Ground::new();
    ground.put("a", "1\n");
    let name = operation(7).to_string();
    let desk = ground.notes().join("ops").join(&name[name.len() - 2..]).join(&name);
    std::fs::create_dir_all(&desk).unwrap();
    let (before, after) = (digest(b"1\n"), digest(b"2\n"));
    let file = json!({"path": "a", "before": before, "after": after});
    let note = json!({"workspace": ground.workspace, "files": [file], "said": "as it was said"});
    std::fs::write(desk.join("note"), note.to_string()).unwrap();
    std::fs::write(desk.join("0"), "2\n").unwrap();
    assert_eq!(ground.changed(operation(7)), None);
    let end = ground.work(Act::Write, operation(7), write("a", "3\n"));
    assert_eq!((end, ground.get("a").as_deref()), (ToolEnd::Done("as it was said".to_owned()), Some("2\n")));
    assert_eq!(ground.changed(operation(7)), None);
}

#[test]
fn what_is_done_for_no_run_is_told_and_not_kept() {
    let ground = ready();
    let operation = fresh();
    assert!(matches!(ground.run(Act::Patch, operation, ground.patch(PATCH)), ToolEnd::Done(_)));
    assert!(!ground.notes().join("blobs").exists());
    let changed = ground.changed(operation).unwrap();
    assert!(ground.refuses(&changed).contains("was not kept"));
}

// ---- taking it back ------------------------------------------------------------------------------

#[test]
fn made_removed_moved_and_changed_files_come_back_with_their_permissions() {
    let ground = ready();
    let changed = ground.worked(Act::Patch, ground.patch(PATCH));
    assert_eq!(stand(&ground), texts(AFTER));
    assert_eq!(ground.restore(&changed), Restored::Done);
    assert_eq!(stand(&ground), texts(BEFORE));
    assert_eq!([ground.mode("a"), ground.mode("c"), ground.mode("gone")], [0o640, 0o755, 0o600]);
    // And can be taken out again, which the first way back does not hold against it.
    assert_eq!(ground.worked(Act::Patch, ground.patch(PATCH)), changed);
    ground.set_mode("a", 0o604);
    assert_eq!(ground.restore(&changed), Restored::Done);
    assert_eq!((stand(&ground), ground.mode("a")), (texts(BEFORE), 0o604), "what is still there keeps its own");
}

#[test]
fn bytes_that_are_no_text_come_back() {
    let ground = Ground::new();
    let bytes: Vec<u8> = (0..=255).cycle().take(100_000).collect();
    ground.put("bin", &bytes);
    let changed = ground.worked(Act::Write, write("bin", "text"));
    assert_eq!(ground.restore(&changed), Restored::Done);
    assert!(std::fs::read(ground.at("bin")).unwrap() == bytes);
}

#[test]
fn restored_twice_is_restored_once() {
    let ground = ready();
    let changed = ground.worked(Act::Patch, ground.patch(PATCH));
    let operation = fresh();
    assert_eq!(ground.restore_as(operation, &changed), Restored::Done);
    assert_eq!(ground.restore_as(operation, &changed), Restored::Done);
    assert_eq!(stand(&ground), texts(BEFORE));
    // Not again, whatever became of the files: not even if it could be.
    ground.worked(Act::Patch, ground.patch(PATCH));
    assert_eq!(ground.restore_as(operation, &changed), Restored::Done);
    assert_eq!(stand(&ground), texts(AFTER));
    ground.put("a", "later\n");
    std::fs::remove_file(ground.at("d")).unwrap();
    let before = ground.everything();
    assert_eq!(ground.restore_as(operation, &changed), Restored::Done);
    assert_eq!(ground.everything(), before);
    std::fs::remove_dir_all(&ground.workspace).unwrap();
    assert_eq!(ground.restore_as(operation, &changed), Restored::Done);
    assert!(!ground.workspace.exists());
    // Another one is held against the files.
    assert_eq!(ground.refuses(&changed), "there is no workspace `w`");
}

#[test]
fn of_two_edits_of_a_file_the_last_goes_first_or_both_together() {
    let ground = Ground::new();
    ground.put("a", "1\n");
    let first = ground.worked(Act::Write, write("a", "2\n"));
    let last = ground.worked(Act::Write, write("a", "3\n"));
    assert_eq!(ground.refuses(&first), "`a` was changed since");
    assert_eq!(ground.restore(&last), Restored::Done);
    assert_eq!(ground.get("a").as_deref(), Some("2\n"));
    assert_eq!(ground.restore(&first), Restored::Done);
    assert_eq!(ground.get("a").as_deref(), Some("1\n"));
    ground.put("a", "3\n");
    let both = of_w(vec![changed_file("a", Some("1\n"), Some("3\n"))]);
    assert_eq!(ground.restore(&both), Restored::Done);
    assert_eq!(ground.get("a").as_deref(), Some("1\n"));
    // What came to nothing is nothing to restore.
    let nothing = of_w(vec![changed_file("a", Some("1\n"), Some("1\n")), changed_file("b", None, None)]);
    assert_eq!(ground.restore(&nothing), Restored::Done);
    assert_eq!((ground.get("a").as_deref(), ground.get("b")), (Some("1\n"), None));
}

#[test]
fn what_somebody_did_since_is_refused_and_no_file_is_touched() {
    /// Why it is refused, and what somebody did.
    type Deed = (&'static str, fn(&Ground));
    let deeds: [Deed; 9] = [
        ("`a` was changed since", |ground| ground.put("a", "2 \n")),
        ("`a` is not there any more", |ground| std::fs::remove_file(ground.at("a")).unwrap()),
        ("`new/b` was changed since", |ground| ground.put("new/b", "")),
        ("`new/b` is not there any more", |ground| std::fs::remove_dir_all(ground.at("new")).unwrap()),
        ("`gone` is there again", |ground| ground.put("gone", "x\n")),
        ("`c` is a directory", |ground| std::fs::create_dir(ground.at("c")).unwrap()),
        ("`new/b` is a link", |ground| {
            // To what it was.
            std::fs::rename(ground.at("new/b"), ground.at("new/moved")).unwrap();
            symlink("moved", ground.at("new/b")).unwrap();
        }),
        ("`gone` is a link", |ground| symlink("nowhere", ground.at("gone")).unwrap()),
        ("`new/b` is no regular file", |ground| {
            std::fs::remove_file(ground.at("new/b")).unwrap();
            let (fifo, mode) = (rustix::fs::FileType::Fifo, 0o600.into());
            rustix::fs::mknodat(rustix::fs::CWD, ground.at("new/b"), fifo, mode, 0).unwrap();
        }),
    ];
    for (expected, somebody) in deeds {
        let ground = ready();
        let changed = ground.worked(Act::Patch, ground.patch(PATCH));
        somebody(&ground);
        let why = ground.refuses(&changed);
        assert!(why.contains(expected), "{expected}: {why}");
    }
}

#[test]
fn what_changes_while_it_is_restored_is_seen_and_the_rest_taken_back() {
    for at in 0.. {
        let ground = Ground::new();
        let changed = of_w(vec![changed_file("a", Some("1\n"), Some("2\n")), changed_file("b", Some("3\n"), None)]);
        let workspace = ground.spaces.named(key().tenant, "w").unwrap();
        let notes = ground.spaces.notes(key().tenant).unwrap();
        for text in ["1\n", "3\n"] {
            blobs::keep(&notes, fresh(), text.as_bytes()).unwrap();
        }
        ground.put("a", "2\n");
        let meanwhile = || {
            change::change(&notes, operation(7), &workspace, &Stop::default(), || {
                let plan = past::plan(&notes, &workspace, &changed.files, 100);
                ground.put("b", "theirs\n");
                plan
            })
        };
        let ended = crash::after(at, meanwhile);
        // Gone on with, as long as that is needed: the file that is in the way stays.
        let restored = ground.restore_as(operation(7), &changed);
        let held = ["a", "b"].map(|name| ground.get(name));
        let [a, b] = held.each_ref().map(|text| text.as_deref());
        match restored {
            Restored::Refused(why) => assert_eq!((a, b), (Some("2\n"), Some("theirs\n")), "at {at}: {why}"),
            Restored::Torn(why) => {
                assert_eq!((a, b), (Some("1\n"), Some("theirs\n")), "at {at}: {why}");
                assert!(why.contains("`b` was changed by somebody else"), "{why}");
            }
            Restored::Done => panic!("at {at}: {held:?}"),
        }
        // Once it is out of the way, the rest follows.
        std::fs::remove_file(ground.at("b")).unwrap();
        assert_eq!(ground.restore_as(operation(7), &changed), Restored::Done, "at {at}");
        assert_eq!(["a", "b"].map(|name| ground.get(name)), [Some("1\n".to_owned()), Some("3\n".to_owned())]);
        if ended.is_some() {
            assert!(at >= 10, "there are {at} places to crash at");
            break;
        }
    }
}

// ---- attacks: records that somebody damaged, or made up ------------------------------------------

#[test]
fn no_record_leads_out_of_its_workspace() {
    let ground = Ground::new();
    ground.put("own", "mine");
    ground.put("sub/.git/config", SECRET);
    ground.put("sub/x", "");
    let outside = ground.outside();
    symlink(outside.join("key"), ground.at("file_link")).unwrap();
    symlink(&outside, ground.at("dir_link")).unwrap();
    symlink("../../..", ground.at("sub/far_up")).unwrap();
    symlink("sub/.git", ground.at("alias")).unwrap();
    symlink("/", ground.at("slash")).unwrap();
    let sibling = ground.spaces.named(key().tenant, "w2").unwrap();
    std::fs::write(sibling.path().join("key"), SECRET).unwrap();
    ground.worked(Act::Write, write("own", "yours"));
    std::fs::write(ground.notes().join("key"), SECRET).unwrap();
    symlink("../.raddle", ground.at("notes")).unwrap();
    let absolute = outside.join("key").display().to_string();
    for (path, expected) in [
        ("../../../outside/key", "`..`"),
        ("sub/../../w2/key", "`..`"),
        ("../.raddle/key", "`..`"),
        (&absolute, "is absolute"),
        (&format!("/proc/self/root{absolute}"), "is absolute"),
        ("file_link", "is a link"),
        ("dir_link/key", "outside of the workspace"),
        ("sub/far_up/../outside/key", "`..`"),
        ("notes/key", "outside of the workspace"),
        (&format!("slash{absolute}"), "outside of the workspace"),
        ("sub/.git/config", "belongs to version control"),
        ("alias/config", "belongs to version control"),
        ("sub/./.git//config", "belongs to version control"),
    ] {
        assert_eq!(ground.naive(path).as_deref(), Some(SECRET), "{path}: this is no attack");
        // To overwrite what is there with something that was kept, and to remove it; alone, and behind another file.
        for before in [Some("mine"), None] {
            let attack = changed_file(path, before, Some(SECRET));
            let own = changed_file("own", Some("mine"), Some("yours"));
            for files in [vec![attack.clone()], vec![own, attack]] {
                let why = ground.refuses(&of_w(files));
                assert!(why.contains(expected), "{path}: {why}");
            }
        }
    }
    // To make something where nothing is.
    for path in ["dir_link/new", "../new", ".git/hooks/post-checkout", "alias/new", ".GIT/new", ".", "", "a\0b", "a\nb"]
    {
        ground.refuses(&of_w(vec![changed_file(path, Some("mine"), None)]));
    }
}

#[test]
fn no_record_names_a_workspace_outside_of_its_tenants_or_makes_one() {
    let ground = Ground::new();
    let other = ground.spaces.named("other".parse().unwrap(), "w").unwrap();
    std::fs::write(other.path().join("key"), SECRET).unwrap();
    ground.worked(Act::Write, write("key", "mine"));
    let mine = ground.worked(Act::Write, write("key", SECRET));
    symlink(ground.outside(), ground.workspace.parent().unwrap().join("link")).unwrap();
    for workspace in [
        "../other/w",
        other.path().to_str().unwrap(),
        ground.outside().to_str().unwrap(),
        "link",
        "link/../../../outside",
        ".raddle",
        ".raddle/blobs",
        "w/key",
        "nowhere",
        ".",
        "",
        "a\nb",
    ] {
        let why = ground.refuses(&FilesChanged { workspace: workspace.to_owned(), ..mine.clone() });
        assert!(why.contains("workspace"), "{workspace}: {why}");
    }
    assert!(!ground.workspace.parent().unwrap().join("nowhere").exists());
    assert_eq!(ground.restore(&mine), Restored::Done);
}

#[test]
fn a_digest_that_is_none_names_no_file() {
    let ground = Ground::new();
    let mut changed = ground.worked(Act::Write, write("a", "1\n"));
    std::fs::create_dir_all(ground.notes().join("blobs/ke")).unwrap();
    for sha256 in ["", ".", "..", "é", "../key", "/etc/passwd", &"A".repeat(64), &"g".repeat(64), &"../".repeat(22)] {
        changed.files[0].before = Some(Content { sha256: sha256.to_owned(), bytes: 0 });
        assert_eq!(ground.refuses(&changed), "what `a` held was not kept, or is not kept any more", "{sha256}");
    }
}

#[test]
fn a_file_is_restored_once_and_none_within_another() {
    let ground = Ground::new();
    symlink(".", ground.at("alias")).unwrap();
    let changed = ground.worked(Act::Write, write("a", "1\n"));
    let again = |path: &str| of_w(vec![changed.files[0].clone(), changed_file(path, None, Some("1\n"))]);
    for path in ["a", "./a", "alias/a"] {
        assert_eq!(ground.refuses(&again(path)), "`a` and `a` cannot be restored together: each file once", "{path}");
    }
    let within = of_w(vec![changed_file("x", Some("1\n"), None), changed_file("x/y", Some("1\n"), None)]);
    let notes = ground.spaces.notes(key().tenant).unwrap();
    blobs::keep(&notes, fresh(), b"1\n").unwrap();
    assert!(ground.refuses(&within).contains("`x` and `x/y`"));
}

#[test]
fn what_is_restored_at_once_is_bounded() {
    let ground = ready();
    let changed = ground.worked(Act::Patch, ground.patch(PATCH));
    let workspace = ground.spaces.named(key().tenant, "w").unwrap();
    let notes = ground.spaces.notes(key().tenant).unwrap();
    let plan = |most| past::plan(&notes, &workspace, &changed.files, most).map(|plan| plan.files.len());
    // Six texts of two bytes each: what there was of five files, and what there is.
    assert_eq!(plan(12).unwrap(), 5);
    assert!(plan(11).unwrap_err().to_string().contains("more than 11 bytes"));
}

// ---- what is kept --------------------------------------------------------------------------------

#[test]
fn what_is_damaged_or_gone_is_not_restored() {
    let ground = ready();
    let changed = ground.worked(Act::Patch, ground.patch(PATCH));
    let blob = ground.blob("3\n");
    for bytes in ["4\n", "", "3\n3\n"] {
        std::fs::write(&blob, bytes).unwrap();
        assert_eq!(ground.refuses(&changed), "what `c` held is damaged");
    }
    // What else would be followed there.
    std::fs::remove_file(&blob).unwrap();
    std::fs::write(ground.outside().join("three"), "3\n").unwrap();
    symlink(ground.outside().join("three"), &blob).unwrap();
    assert!(ground.refuses(&changed).starts_with("what `c` held cannot be read"));
    std::fs::remove_file(&blob).unwrap();
    assert_eq!(ground.refuses(&changed), "what `c` held was not kept, or is not kept any more");
    // Kept again it is whole again.
    for bytes in [None, Some("damaged")] {
        if let Some(bytes) = bytes {
            std::fs::write(&blob, bytes).unwrap();
        }
        ground.put("other", "3\n");
        ground.worked(Act::Write, write("other", ""));
        assert_eq!(std::fs::read_to_string(&blob).unwrap(), "3\n");
    }
    assert_eq!(ground.restore(&changed), Restored::Done);
}

#[test]
fn equal_contents_are_kept_once_and_for_nobody_else() {
    let ground = Ground::new();
    for name in ["a", "b", "c"] {
        ground.put(name, "same\n");
        ground.worked(Act::Write, write(name, name));
    }
    ground.worked(Act::Write, write("new", "what is made has no past"));
    assert_eq!(ground.blobs(), [digest(b"same\n")].into());
    assert_eq!(ground.blob("same\n").metadata().unwrap().permissions().mode() & 0o7777, 0o600);
}

#[test]
fn what_nobody_kept_for_a_month_goes_when_another_comes() {
    let ground = Ground::new();
    let notes = ground.spaces.notes(key().tenant).unwrap();
    // Texts that are kept in one directory.
    let together = |text: &String| digest(text.as_bytes()).starts_with("7f");
    let texts: Vec<String> = (0..).map(|number| number.to_string()).filter(together).take(4).collect();
    let [forgotten, refreshed, young, last] = &texts[..] else { panic!() };
    let keep = |text: &str| blobs::keep(&notes, fresh(), text.as_bytes()).unwrap();
    let age = |path: PathBuf, days: u64| {
        let file = std::fs::File::options().write(true).open(path).unwrap();
        let now = file.metadata().unwrap().modified().unwrap();
        file.set_modified(now - Duration::from_secs(days * 24 * 60 * 60)).unwrap();
    };
    for text in [forgotten, refreshed, young] {
        keep(text);
    }
    // What a crash left of one that was never whole.
    let unfinished = ground.blob(forgotten).with_extension("op_x");
    std::fs::write(&unfinished, "").unwrap();
    age(unfinished, 31);
    age(ground.blob(forgotten), 31);
    age(ground.blob(refreshed), 31);
    age(ground.blob(young), 29);
    keep(refreshed);
    keep(last);
    let kept: BTreeSet<String> = [refreshed, young, last].map(|text| digest(text.as_bytes())).into();
    assert_eq!(ground.blobs(), kept);
    ground.put("a", "now");
    let lost = of_w(vec![changed_file("a", Some(forgotten), Some("now"))]);
    assert_eq!(ground.refuses(&lost), "what `a` held was not kept, or is not kept any more");
    let held = of_w(vec![changed_file("a", Some(young), Some("now"))]);
    assert_eq!(ground.restore(&held), Restored::Done);
}

// ---- crashes -------------------------------------------------------------------------------------

/// Ends the process at each place of a change in turn: what is decided can be taken back.
#[test]
fn what_a_crash_cuts_off_is_kept_before_it_is_decided() {
    for at in 0.. {
        let ground = ready();
        let patch = ground.patch(PATCH);
        let ended = crash::after(at, || ground.work(Act::Patch, operation(1), patch.clone()));
        let notes = ground.spaces.notes(key().tenant).unwrap();
        if let Some(changed) = ground.changed(operation(1)) {
            for content in changed.files.iter().filter_map(|file| file.before.as_ref()) {
                assert!(blobs::get(&notes, &content.sha256).is_ok(), "at {at}");
            }
        } else {
            assert_eq!(stand(&ground), texts(BEFORE), "at {at}");
        }
        let end = ground.work(Act::Patch, operation(1), patch);
        assert!(matches!(end, ToolEnd::Done(_)), "at {at}: {end:?}");
        let changed = ground.changed(operation(1)).unwrap();
        assert_eq!(ground.restore(&changed), Restored::Done, "at {at}");
        assert_eq!(stand(&ground), texts(BEFORE), "at {at}");
        if ended.is_some() {
            assert!(at >= 16, "there are {at} places to crash at");
            break;
        }
    }
}

/// The same for the way back.
#[test]
fn a_restoring_that_a_crash_cuts_off_is_gone_on_with_and_made_once() {
    for at in 0.. {
        let ground = ready();
        let changed = ground.worked(Act::Patch, ground.patch(PATCH));
        let ended = crash::after(at, || ground.restore_as(operation(2), &changed));
        for ((now, before), after) in stand(&ground).iter().zip(texts(BEFORE)).zip(texts(AFTER)) {
            assert!(*now == before || *now == after, "at {at}: torn: {now:?}");
        }
        // A second time, a little later.
        let _again = crash::after(at / 2, || ground.restore_as(operation(2), &changed));
        assert_eq!(ground.restore_as(operation(2), &changed), Restored::Done, "at {at}");
        assert_eq!(stand(&ground), texts(BEFORE), "at {at}");
        assert_eq!([ground.mode("a"), ground.mode("c"), ground.mode("gone")], [0o640, 0o755, 0o600], "at {at}");
        ground.put("a", "later\n");
        assert_eq!(ground.restore_as(operation(2), &changed), Restored::Done, "at {at}");
        assert_eq!(ground.get("a").as_deref(), Some("later\n"), "at {at}");
        if ended.is_some() {
            assert!(at >= 13, "there are {at} places to crash at");
            break;
        }
    }
}

#[test]
fn a_workspace_that_went_while_its_files_were_restored_leaves_nobody_in_doubt() {
    // Cut off with the first file in its place, and no other.
    let cut_off = |at: u32| {
        let ground = ready();
        let changed = ground.worked(Act::Patch, ground.patch(PATCH));
        crash::after(at, || ground.restore_as(operation(2), &changed)).is_none().then_some((ground, changed))
    };
    let is_torn = |ground: &Ground| ground.get("a").as_deref() == Some("1\n") && ground.get("c").is_none();
    let torn = (0..).map_while(cut_off).find(|(ground, _)| is_torn(ground));
    let (ground, changed) = torn.expect("there is such a place");
    let aside = ground.workspace.with_file_name("aside");
    std::fs::rename(&ground.workspace, &aside).unwrap();
    let Restored::Torn(why) = ground.restore_as(operation(2), &changed) else { panic!() };
    assert!(why.contains("there is no workspace `w`"), "{why}");
    std::fs::rename(&aside, &ground.workspace).unwrap();
    assert_eq!(ground.restore_as(operation(2), &changed), Restored::Done);
    assert_eq!(stand(&ground), texts(BEFORE));
}

// ---- as a port -----------------------------------------------------------------------------------

#[tokio::test]
async fn whoever_has_the_port_is_told_and_restores() {
    let ground = ready();
    let (made, tenant) = (fresh(), key().tenant);
    assert!(matches!(ground.work(Act::Patch, made, ground.patch(PATCH)), ToolEnd::Done(_)));
    let files = super::super::past(&ground.spaces);
    let FilesChanged { workspace, files: changed } = files.changed(tenant, made).await.unwrap().unwrap();
    let restore = Restore { tenant, operation: fresh(), workspace, files: changed };
    assert_eq!(files.restore(restore.clone()).await, Restored::Done);
    assert_eq!(stand(&ground), texts(BEFORE));
    let other = Restore { operation: fresh(), ..restore };
    assert!(matches!(files.restore(other).await, Restored::Refused(_)));
}
