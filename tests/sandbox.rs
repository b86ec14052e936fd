//! What a command cannot do, each way of doing it tried.
//!
//! An attack is a script that prints `HIT` when it worked. It is first run free, where it must hit, or the test would
//! prove nothing; then in every cage that this machine can make, where it must not. The scripts are Perl, because that
//! is on every Debian and can make any system call.
//!
//! Nothing here waits for a time: what must have ended held a lock, and the test takes it.

use std::{
    fs::{self, File},
    os::unix::net::UnixListener,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use raddle::sandbox::{End, Excess, Exec, ExecCommand, Kind, Limits, Ran, Sandbox, SandboxConfig};
use raddle_domain::{
    policy::SandboxMode,
    ports::{Output, Saying, Silence},
};
use rustix::fs::FlockOperation;
use tempfile::TempDir;
use tokio::sync::{OnceCell, mpsc};

const MIB: u64 = 1024 * 1024;

fn program() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_raddle"))
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn config(kind: Kind) -> SandboxConfig {
    SandboxConfig {
        kind,
        widest: SandboxMode::DangerFullAccess,
        ports: None,
        env_pass: Vec::new(),
        read: Vec::new(),
        protect: vec![".git".to_owned()],
        timeout: Duration::from_secs(60),
        output_bytes: 64 * 1024,
        limits: Limits { cpu_s: 60, memory_bytes: 2048 * MIB, processes: 512, file_bytes: 512 * MIB, open_files: 1024 },
    }
}

async fn probe(config: SandboxConfig) -> Sandbox {
    Sandbox::probe(config, program(), &[]).await
}

/// No sandbox at all: what an attack is compared with.
async fn free() -> &'static Sandbox {
    static FREE: OnceCell<Sandbox> = OnceCell::const_new();
    FREE.get_or_init(|| probe(config(Kind::None))).await
}

const KINDS: [Kind; 3] = [Kind::Bwrap, Kind::Namespaces, Kind::Landlock];

/// A sandbox of each kind that this machine has, with something changed in its configuration.
async fn cages_with(change: impl Fn(&mut SandboxConfig)) -> Vec<Sandbox> {
    let mut all = Vec::new();
    for kind in KINDS {
        let mut config = config(kind);
        change(&mut config);
        let sandbox = probe(config).await;
        if sandbox.enforced().available {
            all.push(sandbox);
        } else {
            eprintln!("NOT TESTED: {kind:?}: {}", sandbox.enforced().notes.join("; "));
        }
    }
    all
}

async fn cages() -> &'static [Sandbox] {
    static CAGES: OnceCell<Vec<Sandbox>> = OnceCell::const_new();
    CAGES.get_or_init(|| cages_with(|_| {})).await
}

/// A workspace, and things beside it that are not its.
struct Place {
    dir: TempDir,
    workspace: PathBuf,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let workspace = dir.path().canonicalize().unwrap().join("workspace");
        fs::create_dir(&workspace).unwrap();
        fs::write(dir.path().join("secret"), "the secret of another").unwrap();
        Self { dir, workspace }
    }

    fn outside(&self, name: &str) -> PathBuf {
        self.dir.path().canonicalize().unwrap().join(name)
    }

    fn exec(&self, mode: SandboxMode, command: ExecCommand) -> Exec {
        Exec { command, workspace: self.workspace.clone(), cwd: PathBuf::new(), mode, timeout: None }
    }

    async fn perl(&self, sandbox: &Sandbox, mode: SandboxMode, script: &str) -> Ran {
        let argv = ["/usr/bin/perl", "-e", script].map(str::to_owned).to_vec();
        sandbox.run(self.exec(mode, ExecCommand::Argv(argv)), Arc::new(Silence)).await
    }

    async fn shell(&self, sandbox: &Sandbox, script: &str) -> Ran {
        let exec = self.exec(SandboxMode::WorkspaceWrite, ExecCommand::Shell(script.to_owned()));
        sandbox.run(exec, Arc::new(Silence)).await
    }
}

/// Whether an attack works without a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Freely {
    /// Always.
    Yes,
    /// For root; others may be kept from it anyhow.
    AsRoot,
    /// On some kernels, in some configurations.
    Perhaps,
}

struct Attack {
    name: &'static str,
    freely: Freely,
    script: String,
}

fn attack(name: &'static str, freely: Freely, script: impl Into<String>) -> Attack {
    Attack { name, freely, script: script.into() }
}

/// Runs each attack free and in every cage, in both modes; names those that went wrong.
async fn all_refused(place: &Place, attacks: &[Attack]) {
    let mut wrong = Vec::new();
    for Attack { name, freely, script } in attacks {
        let ran = place.perl(free().await, SandboxMode::DangerFullAccess, script).await;
        let hit = ran.output.contains("HIT");
        let must = match freely {
            Freely::Yes => true,
            Freely::AsRoot => is_root(),
            Freely::Perhaps => false,
        };
        if !hit && must {
            wrong.push(format!("{name}: does not even work free: {:?} {}", ran.end, ran.output));
        }
        for cage in cages().await {
            for mode in [SandboxMode::WorkspaceWrite, SandboxMode::ReadOnly] {
                let ran = place.perl(cage, mode, script).await;
                let ended = matches!(ran.end, End::Exited(_) | End::Killed(_));
                // A script that did not run has proved nothing.
                if ran.output.contains("HIT") || !ended || ran.output.contains("syntax error") {
                    wrong.push(format!("{name}, in {} {mode:?}: {:?} {}", cage.enforced().kind, ran.end, ran.output));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{} attacks went wrong:\n{}", wrong.len(), wrong.join("\n"));
}

/// A number of a system call, on this processor.
fn call(x86_64: u32, others: u32) -> u32 {
    if cfg!(target_arch = "x86_64") { x86_64 } else { others }
}

#[tokio::test]
async fn there_is_a_sandbox_where_the_kernel_has_landlock_and_none_is_claimed_where_it_has_not() {
    let lsm = fs::read_to_string("/sys/kernel/security/lsm").ok();
    let auto = probe(config(Kind::Auto)).await;
    if lsm.is_some_and(|lsm| !lsm.contains("landlock")) {
        eprintln!("NOT TESTED: this kernel has no Landlock");
        let place = Place::new();
        assert!(!auto.enforced().available);
        let ran = place.shell(&auto, "echo ran").await;
        assert!(matches!(ran.end, End::Refused(_)) && ran.output.is_empty(), "{ran:?}");
        return;
    }
    assert!(auto.enforced().available, "{:?}", auto.enforced());
    assert!(auto.enforced().landlock >= Some(3) && auto.enforced().seccomp);
    assert!(auto.enforced().tried.len() > 10 && auto.enforced().tried.iter().all(|tried| tried.ok));
}

#[tokio::test]
async fn files_outside_can_be_neither_read_nor_written_by_any_way_to_them() {
    let place = Place::new();
    let secret = place.outside("secret");
    let dir = place.outside("");
    let dir = dir.to_str().unwrap().trim_end_matches('/');
    let secret = secret.to_str().unwrap();
    let pid = std::process::id();
    let read = |path: &str| format!("open(F,'<',\"{path}\") and defined(read(F,$x,1)) and $x ne '' and print 'HIT'");
    let write = |path: &str| format!("open(F,'>','{path}') and print 'HIT'");
    // What a server holds in memory and in its environment, and the list of who is there.
    let attacks = [
        attack("read by an absolute path", Freely::Yes, read(secret)),
        attack("read by `..`", Freely::Yes, read("../secret")),
        attack("read through the root of a process", Freely::Yes, read(&format!("/proc/self/root{secret}"))),
        attack(
            "read through the cwd of the server",
            Freely::Yes,
            format!("opendir(D,'/proc/{pid}/cwd/') and print 'HIT'"),
        ),
        attack("read /etc/shadow", Freely::AsRoot, read("/etc/shadow")),
        attack("open the environment of process 1", Freely::Perhaps, "open(F,'<','/proc/1/environ') and print 'HIT'"),
        attack("read the environment of the server", Freely::Yes, read(&format!("/proc/{pid}/environ"))),
        attack(
            "open the memory of the server",
            Freely::AsRoot,
            format!("open(F,'<','/proc/{pid}/mem') and print 'HIT'"),
        ),
        attack("read the command line of the server", Freely::Yes, read(&format!("/proc/{pid}/cmdline"))),
        attack(
            "list a directory outside",
            Freely::Yes,
            format!("opendir(D,'{dir}') and grep {{$_ eq 'secret'}} readdir(D) and print 'HIT'"),
        ),
        attack("write by an absolute path", Freely::Yes, write(&format!("{dir}/written"))),
        attack("write by `..`", Freely::Yes, write("../written")),
        attack(
            "write to /dev/shm",
            Freely::Yes,
            "open(F,'>',\"/dev/shm/raddle-$$\") and print('HIT') and unlink \"/dev/shm/raddle-$$\"",
        ),
        attack(
            "write to /tmp",
            Freely::Yes,
            "open(F,'>',\"/tmp/raddle-$$\") and print('HIT') and unlink \"/tmp/raddle-$$\"",
        ),
        attack(
            "empty a file without opening it to write",
            Freely::Yes,
            format!("truncate('{dir}/precious', 0) and print 'HIT'"),
        ),
        attack("change what is in a readable file", Freely::AsRoot, "open(F,'+<','/usr/bin/env') and print 'HIT'"),
        attack("change permissions outside", Freely::Yes, format!("chmod(0777,'{secret}') and print 'HIT'")),
        attack("change times outside", Freely::Yes, format!("utime(1,1,'{secret}') and print 'HIT'")),
        attack(
            "remove outside",
            Freely::Yes,
            format!("open(F,'>','{dir}/gone'); unlink('{dir}/gone') and print 'HIT'"),
        ),
        attack(
            "rename outside",
            Freely::Yes,
            format!(
                "rename('{dir}/precious','{dir}/renamed') and print('HIT') and rename('{dir}/renamed','{dir}/precious')"
            ),
        ),
        attack("a link to the secret", Freely::Yes, format!("symlink('{secret}',\"link$$\"); {}", read("link$$"))),
        attack(
            "a hard link to the secret",
            Freely::Yes,
            format!("link('{secret}',\"hard$$\") and open(F,'<',\"hard$$\") and read(F,$x,1) and print 'HIT'"),
        ),
        attack(
            "a file moved in from outside",
            Freely::Yes,
            format!("rename('{dir}/precious',\"moved$$\") and print('HIT') and rename(\"moved$$\",'{dir}/precious')"),
        ),
        attack(
            "a directory swapped for a link",
            Freely::Yes,
            format!(
                "mkdir \"d$$\"; for (1..200) {{ rename(\"d$$\",\"e$$\"); symlink('{dir}',\"d$$\"); open(F,'<',\"d$$/secret\") and read(F,$x,1) and $hit=1; unlink \"d$$\"; rename(\"e$$\",\"d$$\") }} print 'HIT' if $hit"
            ),
        ),
        attack(
            "a device of its own",
            Freely::AsRoot,
            format!("syscall({}, -100, \"n$$\", 0020666, 0x103) == 0 and print 'HIT'", call(259, 33)),
        ),
        attack(
            "files by handle",
            Freely::Perhaps,
            format!("syscall({}, 0, 0, 0) ; print 'HIT' if $!{{EFAULT}}", call(304, 265)),
        ),
    ];
    fs::write(place.outside("precious"), "precious").unwrap();
    all_refused(&place, &attacks).await;
    assert_eq!(
        fs::read_to_string(place.outside("precious")).unwrap_or_default(),
        "",
        "what was emptied was emptied free"
    );
}

#[tokio::test]
async fn nobody_can_be_reached() {
    let place = Place::new();
    let path = place.outside("socket");
    let _named = UnixListener::bind(&path).unwrap();
    let inside = place.workspace.join("socket");
    let _inside = UnixListener::bind(&inside).unwrap();
    let mailbox = std::os::unix::net::UnixDatagram::bind(place.workspace.join("mailbox")).unwrap();
    let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let _tcp = std::net::TcpListener::bind(tcp).unwrap();
    let port = tcp.port();
    let name = format!("raddle-test-{}", std::process::id());
    let _abstract = {
        use std::os::linux::net::SocketAddrExt;
        UnixListener::bind_addr(&std::os::unix::net::SocketAddr::from_abstract_name(&name).unwrap()).unwrap()
    };
    let sockets = "use Socket;";
    let unix = |path: &str| {
        format!("{sockets} socket(S,PF_UNIX,SOCK_STREAM,0) and connect(S,pack_sockaddr_un(\"{path}\")) and print 'HIT'")
    };
    let opened = |family: u32, kind: u32, protocol: u32| {
        format!("syscall({}, {family}, {kind}, {protocol}) >= 0 and print 'HIT'", call(41, 198))
    };
    let attacks = [
        attack(
            "TCP",
            Freely::Yes,
            format!(
                "{sockets} socket(S,PF_INET,SOCK_STREAM,0) and connect(S,pack_sockaddr_in({port},INADDR_LOOPBACK)) and print 'HIT'"
            ),
        ),
        attack(
            "listening on TCP",
            Freely::Yes,
            format!(
                "{sockets} socket(S,PF_INET,SOCK_STREAM,0) and bind(S,pack_sockaddr_in(0,INADDR_LOOPBACK)) and listen(S,1) and print 'HIT'"
            ),
        ),
        attack(
            "UDP",
            Freely::Yes,
            format!(
                "{sockets} socket(S,PF_INET,SOCK_DGRAM,0) and send(S,'x',0,pack_sockaddr_in(9,INADDR_LOOPBACK)) and print 'HIT'"
            ),
        ),
        attack("a socket in the file system", Freely::Yes, unix(path.to_str().unwrap())),
        attack("a socket in the workspace", Freely::Yes, unix(inside.to_str().unwrap())),
        attack("an abstract socket", Freely::Yes, unix(&format!("\\0{name}"))),
        attack(
            "a datagram from one of a pair",
            Freely::Yes,
            format!(
                "{sockets} socketpair(A,B,PF_UNIX,SOCK_DGRAM,0) and send(A,'x',0,pack_sockaddr_un('mailbox')) and print 'HIT'"
            ),
        ),
        attack("a raw socket", Freely::AsRoot, opened(2, 3, 1)),
        attack("a packet socket", Freely::AsRoot, opened(17, 3, 0)),
        attack("a netlink socket", Freely::Yes, opened(16, 3, 0)),
        attack("a socket to the host of a virtual machine", Freely::Perhaps, opened(40, 1, 0)),
        attack("a socket of the kernel's ciphers", Freely::Perhaps, opened(38, 5, 0)),
        attack(
            "a socket by another calling convention",
            Freely::Perhaps,
            "syscall(0x40000029, 2, 1, 0) >= 0 and print 'HIT'",
        ),
        attack(
            "io_uring, which opens sockets on its own",
            Freely::Perhaps,
            "$p = \"\\0\" x 120; syscall(425, 4, $p) >= 0 and print 'HIT'",
        ),
        attack(
            "shared memory of System V",
            Freely::Yes,
            "use IPC::SysV qw(IPC_PRIVATE IPC_CREAT IPC_RMID); $id = shmget(IPC_PRIVATE,4096,0600|IPC_CREAT); defined $id and print('HIT') and shmctl($id,IPC_RMID,0)",
        ),
    ];
    all_refused(&place, &attacks).await;
    drop(mailbox);
}

#[tokio::test]
async fn a_pair_of_streams_still_works() {
    let place = Place::new();
    let script = "use Socket; socketpair(A,B,PF_UNIX,SOCK_STREAM,0) or die $!; syswrite(A,'x'); sysread(B,$x,1); print \"got $x\"";
    for cage in cages().await {
        let ran = place.perl(cage, SandboxMode::WorkspaceWrite, script).await;
        assert_eq!((ran.output.as_str(), &ran.end), ("got x", &End::Exited(0)), "{}", cage.enforced().kind);
    }
}

/// A process that is not ours to end by a command; it ends with the test.
struct Bystander(std::process::Child);

impl Bystander {
    fn new() -> Self {
        Self(Command::new("/bin/cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Bystander {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[tokio::test]
async fn no_other_process_can_be_touched() {
    let place = Place::new();
    let bystander = Bystander::new();
    let pid = bystander.0.id();
    let server = std::process::id();
    let syscall = |number: u32, arguments: &str| format!("syscall({number}, {arguments}) == 0 and print 'HIT'");
    let attacks = [
        attack("a signal to the server", Freely::Yes, format!("kill('CONT',{server}) and print 'HIT'")),
        attack("a signal to another process", Freely::Yes, format!("kill(0,{pid}) and print 'HIT'")),
        attack("a signal by a thread's number", Freely::Yes, syscall(call(200, 130), &format!("{pid}, 18"))),
        attack(
            "a queued signal",
            Freely::Yes,
            format!("$i = pack('i32', 18, 0, -1); {}", syscall(call(129, 138), &format!("{pid}, 18, $i"))),
        ),
        attack("tracing another process", Freely::AsRoot, syscall(call(101, 117), &format!("0x4206, {pid}, 0, 0"))),
        attack(
            "reading the memory of another process",
            Freely::AsRoot,
            syscall(call(310, 270), &format!("{pid}, 0, 0, 0, 0, 0")),
        ),
        attack(
            "writing the memory of another process",
            Freely::AsRoot,
            syscall(call(311, 271), &format!("{pid}, 0, 0, 0, 0, 0")),
        ),
        attack("the priority of another process", Freely::Yes, format!("setpriority(0,{pid},19) and print 'HIT'")),
        attack(
            "the limits of another process",
            Freely::Yes,
            format!("$l = \"\\0\" x 16; {}", syscall(call(302, 261), &format!("{pid}, 7, 0, $l"))),
        ),
        attack(
            "which processes there are",
            Freely::Yes,
            format!("opendir(P,'/proc') and grep {{$_ eq '{server}'}} readdir(P) and print 'HIT'"),
        ),
        attack("a descriptor of another process", Freely::Yes, format!("opendir(D,'/proc/{pid}/fd') and print 'HIT'")),
        attack("typing into a terminal", Freely::Yes, "$c = 'x'; ioctl(STDIN,0x5412,$c); print 'HIT' if $!{ENOTTY}"),
    ];
    all_refused(&place, &attacks).await;
}

#[tokio::test]
async fn nothing_of_the_machine_can_be_changed() {
    let place = Place::new();
    let syscall = |number: u32, arguments: &str| format!("syscall({number}, {arguments}) == 0 and print 'HIT'");
    let some = |number: u32, arguments: &str| format!("syscall({number}, {arguments}) >= 0 and print 'HIT'");
    let perhaps = Freely::Perhaps;
    let attacks = [
        attack(
            "mounting",
            Freely::AsRoot,
            format!(
                "mkdir \"m$$\"; {} and syscall({}, \"m$$\", 0)",
                "$t = 'tmpfs'; $m = \"m$$\"; syscall(MOUNT, $t, $m, $t, 0, 0) == 0 and print('HIT')"
                    .replace("MOUNT", &call(165, 40).to_string()),
                call(166, 39)
            ),
        ),
        attack("another root", Freely::AsRoot, syscall(call(161, 51), "my $r = '/usr'")),
        attack("a user namespace", perhaps, syscall(call(272, 97), "0x10000000")),
        attack(
            "a user namespace by clone",
            perhaps,
            format!("$p = syscall({}, 0x10000011, 0, 0, 0, 0); exit if $p == 0; print 'HIT' if $p > 0", call(56, 220)),
        ),
        attack(
            "a user namespace by clone3",
            perhaps,
            "$a = pack('Q8', 0x10000000, 0, 0, 0, 17, 0, 0, 0); $p = syscall(435, $a, 64); exit if $p == 0; print 'HIT' if $p > 0",
        ),
        attack("a mount namespace", Freely::AsRoot, syscall(call(272, 97), "0x20000")),
        attack(
            "a program for the kernel",
            Freely::AsRoot,
            format!("$a = pack('L4Q12', 2, 4, 4, 1); {}", some(call(321, 280), "0, $a, 72")),
        ),
        attack("the keyring", perhaps, some(call(250, 219), "0, -3, 1")),
        attack("page faults of its own", perhaps, some(call(323, 282), "1")),
        attack(
            "counters of the processor",
            perhaps,
            format!("$a = pack('LLQ16', 1, 128); {}", some(call(298, 241), "$a, 0, -1, -1, 0")),
        ),
        attack(
            "new privileges",
            Freely::Yes,
            format!("syscall({}, 39, 0, 0, 0, 0) == 0 and print 'HIT'", call(157, 167)),
        ),
        attack(
            "what its user may do as root",
            Freely::AsRoot,
            "open(F,'<','/proc/self/status') or syscall(0,0,0,0); for (<F>) { print 'HIT' if /^Cap(Prm|Eff|Bnd|Amb|Inh):\\s*0*[1-9a-f]/ && $ENV{HOME} && !/CapBnd/ }",
        ),
        attack(
            "another name of the machine",
            Freely::AsRoot,
            format!("$h = `uname -n`; chomp $h; {}", syscall(call(170, 161), "$h, length $h")),
        ),
        attack(
            "another clock",
            Freely::AsRoot,
            format!(
                "$t = \"\\0\" x 16; syscall({}, 0, $t); syscall({}, 0, $t) == 0 and print 'HIT'",
                call(228, 113),
                call(227, 112)
            ),
        ),
    ];
    all_refused(&place, &attacks).await;
}

#[tokio::test]
async fn a_command_of_another_processor_mode_does_not_pass_the_filter() {
    // `int 0x80` cannot be said in Perl; the filter kills what comes by it, which is seen as SIGSYS.
    let place = Place::new();
    if !cfg!(target_arch = "x86_64") || !Path::new("/usr/bin/cc").exists() {
        eprintln!("NOT TESTED: there is no C compiler, or no such mode");
        return;
    }
    let source = place.outside("old.c");
    fs::write(
        &source,
        "int main(void){long r;__asm__ volatile(\"int $0x80\":\"=a\"(r):\"a\"(20L):\"memory\");return r>0?0:1;}",
    )
    .unwrap();
    let program = place.workspace.join("old");
    let built = Command::new("/usr/bin/cc").arg("-o").arg(&program).arg(&source).status().unwrap();
    assert!(built.success());
    let argv = || ExecCommand::Argv(vec!["./old".to_owned()]);
    for cage in cages().await {
        let ran = cage.run(place.exec(SandboxMode::WorkspaceWrite, argv()), Arc::new(Silence)).await;
        assert_eq!(ran.end, End::Killed(31), "{}: {}", cage.enforced().kind, ran.output);
    }
}

#[tokio::test]
async fn nothing_that_was_open_is_inherited() {
    let place = Place::new();
    let secret = File::open(place.outside("secret")).unwrap();
    // As one that the server got from whoever started it.
    rustix::io::fcntl_setfd(&secret, rustix::io::FdFlags::empty()).unwrap();
    let script = "for my $fd (3..400) { open(F, '<&=', $fd) and sysread(F,$x,7) and $x eq 'the sec' and print 'HIT' }";
    let plain = Command::new("/usr/bin/perl").args(["-e", script]).output().unwrap();
    assert!(String::from_utf8_lossy(&plain.stdout).contains("HIT"), "it is inherited by any other process");
    let all = "use POSIX; for my $fd (3..400) { my $copy = POSIX::dup($fd); print \"open $fd\\n\" if defined $copy }";
    for cage in [cages().await, std::slice::from_ref(free().await)].concat_refs() {
        let ran = place.perl(cage, mode_of(cage), script).await;
        assert_eq!((ran.output.as_str(), &ran.end), ("", &End::Exited(0)), "{}", cage.enforced().kind);
        let ran = place.perl(cage, mode_of(cage), all).await;
        assert_eq!(ran.output, "", "{}", cage.enforced().kind);
    }
}

/// The mode in which a sandbox runs commands in these tests.
fn mode_of(sandbox: &Sandbox) -> SandboxMode {
    if sandbox.confines() { SandboxMode::WorkspaceWrite } else { SandboxMode::DangerFullAccess }
}

trait ConcatRefs<'a> {
    fn concat_refs(&self) -> Vec<&'a Sandbox>;
}

impl<'a> ConcatRefs<'a> for [&'a [Sandbox]; 2] {
    fn concat_refs(&self) -> Vec<&'a Sandbox> {
        self.iter().flat_map(|all| all.iter()).collect()
    }
}

#[tokio::test]
async fn a_reader_changes_nothing_at_all() {
    let place = Place::new();
    fs::write(place.workspace.join("file"), "as it was").unwrap();
    let scripts = [
        "open(F,'>','new') and print 'HIT'",
        "open(F,'>>','file') and print 'HIT'",
        "mkdir('dir') and print 'HIT'",
        "unlink('file') and print 'HIT'",
        "rename('file','other') and print 'HIT'",
        "symlink('file','other') and print 'HIT'",
        "link('file','other') and print 'HIT'",
        "chmod(0777,'file') and print 'HIT'",
        "open(F,'>',\"$ENV{HOME}/x\") and print 'HIT'",
    ];
    for cage in cages().await {
        for script in scripts {
            let ran = place.perl(cage, SandboxMode::ReadOnly, script).await;
            assert!(!ran.output.contains("HIT"), "{} {script}", cage.enforced().kind);
        }
        let ran = place.perl(cage, SandboxMode::ReadOnly, "open(F,'<','file'); print <F>").await;
        assert_eq!(ran.output, "as it was");
    }
}

#[tokio::test]
async fn what_runs_later_outside_cannot_be_planted() {
    let scripts = [
        ("a hook", "echo evil > .git/hooks/post-checkout"),
        ("the configuration", "echo '[core] fsmonitor = evil' >> .git/config"),
        ("a configuration beside it", "echo evil > .git/config.worktree"),
        ("another place for the configuration", "echo ../evil > .git/commondir"),
        ("hooks that were missing", "mkdir -p .git/hooks2 && ln -s /usr .git/x"),
        ("all of it replaced", "mv .git .old && mkdir .git"),
        ("all of it removed", "rm -rf .git"),
        ("its permissions", "chmod 777 .git"),
    ];
    for cage in cages().await.iter().filter(|cage| cage.enforced().protects) {
        let kind = cage.enforced().kind;
        for (name, script) in scripts {
            // Where it is a repository, and where it is none yet.
            for there in [true, false] {
                let place = Place::new();
                let git = place.workspace.join(".git");
                if there {
                    fs::create_dir_all(git.join("hooks")).unwrap();
                    fs::write(git.join("config"), "[core]\n").unwrap();
                }
                let before = tree(&git);
                // It is an attack only if it works without.
                let spare = Place::new();
                fs::create_dir_all(spare.workspace.join(".git/hooks")).unwrap();
                fs::write(spare.workspace.join(".git/config"), "[core]\n").unwrap();
                let ran = spare.free_shell(script).await;
                assert_eq!(ran.end, End::Exited(0), "{name}, free: {}", ran.output);
                let ran = place.shell(cage, script).await;
                assert!(matches!(ran.end, End::Exited(1..)), "{name} in {kind}: {ran:?}");
                assert!(git.is_dir() && tree(&git) == before, "{name} in {kind}");
            }
        }
        let place = Place::new();
        let ran = place.shell(cage, "git init . ").await;
        assert!(matches!(ran.end, End::Exited(1..)), "a repository of its own in {kind}: {ran:?}");
    }
}

#[tokio::test]
async fn a_link_where_something_is_to_be_protected_stops_the_command() {
    for cage in cages().await.iter().filter(|cage| cage.enforced().protects) {
        let place = Place::new();
        fs::create_dir(place.workspace.join("elsewhere")).unwrap();
        std::os::unix::fs::symlink("elsewhere", place.workspace.join(".git")).unwrap();
        let ran = place.shell(cage, "echo evil > ran").await;
        assert!(matches!(ran.end, End::Refused(_)), "{ran:?}");
        assert!(!place.workspace.join("ran").exists());
    }
}

/// Names and contents below a directory.
fn tree(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let mut all: Vec<_> = entries
        .flat_map(|entry| {
            let path = entry.unwrap().path();
            let below = tree(&path);
            [(path.clone(), fs::read(&path).unwrap_or_default())].into_iter().chain(below)
        })
        .collect();
    all.sort();
    all
}

impl Place {
    async fn free_shell(&self, script: &str) -> Ran {
        let exec = self.exec(SandboxMode::DangerFullAccess, ExecCommand::Shell(script.to_owned()));
        free().await.run(exec, Arc::new(Silence)).await
    }
}

#[tokio::test]
async fn a_command_starts_in_its_workspace_or_not_at_all() {
    let place = Place::new();
    fs::create_dir_all(place.workspace.join("inner/deep")).unwrap();
    std::os::unix::fs::symlink(place.outside(""), place.workspace.join("out")).unwrap();
    std::os::unix::fs::symlink("inner", place.workspace.join("in")).unwrap();
    for cage in [cages().await, std::slice::from_ref(free().await)].concat_refs() {
        let run = async |cwd: &str| {
            let exec = Exec {
                cwd: cwd.into(),
                ..place.exec(mode_of(cage), ExecCommand::Shell("pwd -P; touch ran".to_owned()))
            };
            cage.run(exec, Arc::new(Silence)).await
        };
        for cwd in ["..", "inner/../..", "/", "/etc", "out", "out/..", "missing", "/proc/self/cwd"] {
            let ran = run(cwd).await;
            assert!(matches!(ran.end, End::Refused(_)), "{cwd} {ran:?}");
        }
        assert!(!place.outside("ran").exists());
        let deep = place.workspace.join("inner/deep");
        for (cwd, there) in
            [("inner/deep", &deep), (deep.to_str().unwrap(), &deep), ("in/deep", &deep), ("", &place.workspace)]
        {
            let ran = run(cwd).await;
            assert_eq!((ran.output.trim(), &ran.end), (there.to_str().unwrap(), &End::Exited(0)), "{cwd}");
        }
    }
}

#[tokio::test]
async fn a_workspace_that_was_swapped_for_a_link_is_not_entered() {
    for cage in cages().await {
        let place = Place::new();
        fs::create_dir(place.outside("victim")).unwrap();
        fs::rename(&place.workspace, place.outside("moved")).unwrap();
        std::os::unix::fs::symlink(place.outside("victim"), &place.workspace).unwrap();
        let ran = place.shell(cage, "echo evil > file").await;
        assert!(matches!(ran.end, End::Refused(_)), "{ran:?}");
        assert!(tree(&place.outside("victim")).is_empty());
    }
}

#[tokio::test]
async fn what_must_not_be_read_cannot_be_configured_to_be() {
    let place = Place::new();
    let secret = place.outside("secret");
    let above = SandboxConfig { read: vec![place.outside("")], ..config(Kind::Auto) };
    let sandbox = Sandbox::probe(above.clone(), program(), std::slice::from_ref(&secret)).await;
    assert!(!sandbox.enforced().available);
    assert!(sandbox.enforced().notes[0].contains("could read"), "{:?}", sandbox.enforced().notes);
    let ran = place.shell(&sandbox, "echo ran").await;
    assert!(matches!(ran.end, End::Refused(_)) && ran.output.is_empty());
    // Nor a part of it. A command is in its own workspace all the same.
    let root = place.outside("");
    let below = SandboxConfig { read: vec![place.workspace.clone()], ..config(Kind::Auto) };
    let sandbox = Sandbox::probe(below, program(), std::slice::from_ref(&root)).await;
    assert!(!sandbox.enforced().available);
    assert!(sandbox.enforced().notes[0].contains("could read"), "{:?}", sandbox.enforced().notes);
    let sandbox = Sandbox::probe(config(Kind::Auto), program(), std::slice::from_ref(&root)).await;
    if sandbox.enforced().available {
        assert_eq!(place.shell(&sandbox, "echo ran").await.output, "ran\n");
    }
    // What nobody hides may be shown.
    let sandbox = Sandbox::probe(above, program(), &[]).await;
    if sandbox.enforced().available {
        let ran = place.shell(&sandbox, &format!("cat {}", secret.display())).await;
        assert_eq!(ran.output, "the secret of another");
    }
}

#[tokio::test]
async fn a_helper_that_does_nothing_confines_nobody() {
    let place = Place::new();
    for helper in ["/bin/true", "/bin/false", "/bin/cat", "/nonexistent"] {
        for kind in KINDS {
            let sandbox = Sandbox::probe(config(kind), helper.into(), &[]).await;
            assert!(!sandbox.enforced().available, "{helper} {kind:?}");
            let ran = place.shell(&sandbox, "echo ran").await;
            assert!(matches!(ran.end, End::Refused(_)) && ran.output.is_empty(), "{helper} {kind:?} {ran:?}");
        }
    }
}

#[tokio::test]
async fn a_mode_that_is_wider_than_allowed_is_refused() {
    let place = Place::new();
    for sandbox in cages_with(|config| config.widest = SandboxMode::ReadOnly).await {
        for mode in [SandboxMode::WorkspaceWrite, SandboxMode::DangerFullAccess] {
            let ran = sandbox.run(place.exec(mode, ExecCommand::Shell("echo ran".into())), Arc::new(Silence)).await;
            assert!(matches!(ran.end, End::Refused(_)) && ran.output.is_empty(), "{ran:?}");
        }
    }
}

// ---- what a command may take ---------------------------------------------------------------------

#[tokio::test]
async fn a_fork_bomb_is_ended() {
    let place = Place::new();
    // Each child waits for a pipe that nobody writes to; the last one says so.
    let bomb = |then: &str| {
        format!(
            "pipe(R,W); for (1..120) {{ my $p = fork; if (!defined $p) {{ print 'NO MORE'; last }} if ($p == 0) {{ POSIX::setsid() if $_ % 2; sysread(R,$x,1); exit }} }} {then}"
        )
    };
    let bomb = |then: &str| format!("use POSIX; $| = 1; {}", bomb(then));
    let ran = place.perl(free().await, SandboxMode::DangerFullAccess, &bomb("print 'HIT'; close W; close R;")).await;
    assert!(ran.output.contains("HIT"), "{ran:?}");
    for sandbox in cages_with(|config| config.limits.processes = 20).await {
        let ran = place.perl(&sandbox, SandboxMode::WorkspaceWrite, &bomb("sysread(R,$x,1)")).await;
        assert_eq!(ran.end, End::TooMuch(Excess::Processes(20)), "{}", sandbox.enforced().kind);
    }
}

#[tokio::test]
async fn a_memory_hog_is_ended_alone_and_in_company() {
    let place = Place::new();
    let alone = "$x = 'x' x (300 << 20); print 'HIT'";
    let company = "pipe(R,W); $| = 1; for (1..6) { if (!fork) { $x = 'x' x (60 << 20); syswrite(W,'x'); sysread(STDIN,$y,1); pipe(A,B); sysread(A,$y,1); exit } } for (1..6) { sysread(R,$y,1) } print 'HIT'; ";
    let ran = place.perl(free().await, SandboxMode::DangerFullAccess, alone).await;
    assert!(ran.output.contains("HIT"), "{ran:?}");
    let ran = place.perl(free().await, SandboxMode::DangerFullAccess, company).await;
    assert!(ran.output.contains("HIT"), "{ran:?}");
    for sandbox in cages_with(|config| config.limits.memory_bytes = 200 * MIB).await {
        let ran = place.perl(&sandbox, SandboxMode::WorkspaceWrite, alone).await;
        assert!(!ran.output.contains("HIT") && ran.end != End::Exited(0), "{ran:?}");
        // It stays as large as it is, until somebody looks.
        let ran =
            place.perl(&sandbox, SandboxMode::WorkspaceWrite, &format!("{company} pipe(A,B); sysread(A,$y,1)")).await;
        assert_eq!(ran.end, End::TooMuch(Excess::Memory(200 * MIB)), "{}", ran.output);
    }
}

#[tokio::test]
async fn a_process_that_only_spins_is_ended() {
    let place = Place::new();
    for sandbox in cages_with(|config| config.limits.cpu_s = 1).await {
        let ran = place.perl(&sandbox, SandboxMode::WorkspaceWrite, "1 while 1").await;
        assert!(matches!(ran.end, End::Killed(24 | 9)), "{ran:?}");
    }
}

#[tokio::test]
async fn a_file_does_not_grow_for_ever() {
    let place = Place::new();
    let script = "open(F,'>','big'); $SIG{XFSZ} = 'IGNORE'; for (1..64) { print F 'x' x (1 << 20) or last } close F; print -s 'big'";
    let ran = place.perl(free().await, SandboxMode::DangerFullAccess, script).await;
    assert_eq!(ran.output, (64 * MIB).to_string());
    for sandbox in cages_with(|config| config.limits.file_bytes = 4 * MIB).await {
        let ran = place.perl(&sandbox, SandboxMode::WorkspaceWrite, script).await;
        assert_eq!(ran.output, (4 * MIB).to_string());
    }
}

#[tokio::test]
async fn a_flood_is_cut_and_says_so() {
    let place = Place::new();
    for cage in cages().await {
        let ran = place.shell(cage, "echo first; head -c 20000000 /dev/zero | tr '\\0' y; echo; echo last >&2").await;
        assert_eq!(ran.end, End::Exited(0));
        assert!(ran.output.starts_with("first\nyyy") && ran.output.ends_with("y\nlast\n"), "both ends are there");
        assert!(ran.output.contains("bytes are left out here, of 20000012 in all"), "{}", &ran.output[30000..34000]);
        assert!(ran.output.len() < 65 * 1024);
    }
}

#[tokio::test]
async fn what_never_ends_is_ended_and_what_it_wrote_is_kept() {
    let place = Place::new();
    for cage in cages().await {
        let after = Duration::from_millis(700);
        for script in ["echo began; yes", "echo began; trap '' TERM INT HUP; while :; do read -r x < /dev/zero; done"] {
            let exec = Exec {
                timeout: Some(after),
                ..place.exec(SandboxMode::WorkspaceWrite, ExecCommand::Shell(script.to_owned()))
            };
            let ran = cage.run(exec, Arc::new(Silence)).await;
            assert_eq!(ran.end, End::TimedOut(after));
            assert!(ran.output.starts_with("began\n"), "{}", &ran.output[..100.min(ran.output.len())]);
        }
    }
}

// ---- how a command ends --------------------------------------------------------------------------

/// Makes a daemon that holds a lock on the file `lock`, has left its group and its session, and has closed everything;
/// the script goes on when it is there.
const DAEMON: &str = "use POSIX; use Fcntl ':flock'; $| = 1; pipe(R,W); if (!fork) { POSIX::setsid(); if (!fork) { POSIX::setsid(); \
     $SIG{$_} = 'IGNORE' for qw(TERM HUP INT); open(L,'>','lock'); flock(L,LOCK_EX); print L $$; L->flush if L->can('flush'); \
     close R; close STDIN; close STDOUT; close STDERR; syswrite(W,'x'); close W; POSIX::pause() while 1 } exit } close W; \
     sysread(R,$x,1); ";

/// Waits until nobody holds the lock, in a way that ends only then.
async fn released(lock: PathBuf) {
    let waits = move || rustix::fs::flock(File::open(lock).unwrap(), FlockOperation::LockExclusive).unwrap();
    let waits = tokio::task::spawn_blocking(waits);
    tokio::time::timeout(Duration::from_secs(60), waits).await.expect("somebody holds the lock still").unwrap();
}

fn is_held(lock: &Path) -> bool {
    rustix::fs::flock(File::open(lock).unwrap(), FlockOperation::NonBlockingLockExclusive).is_err()
}

#[tokio::test]
async fn a_daemon_does_not_outlive_its_command() {
    // Without a keeper it does.
    let place = Place::new();
    let plain = Command::new("/usr/bin/perl").args(["-e", DAEMON]).current_dir(&place.workspace).status().unwrap();
    let lock = place.workspace.join("lock");
    assert!(plain.success() && is_held(&lock));
    let pid: i32 = fs::read_to_string("/proc/locks")
        .ok()
        .and_then(|locks| lock_holder(&locks, &lock))
        .expect("the holder of the lock is known");
    rustix::process::kill_process(rustix::process::Pid::from_raw(pid).unwrap(), rustix::process::Signal::KILL).unwrap();
    released(lock).await;
    for sandbox in [cages().await, std::slice::from_ref(free().await)].concat_refs() {
        let place = Place::new();
        let lock = place.workspace.join("lock");
        let ran = place.perl(sandbox, mode_of(sandbox), &format!("{DAEMON} print 'done'")).await;
        assert_eq!((ran.output.as_str(), &ran.end), ("done", &End::Exited(0)), "{}", sandbox.enforced().kind);
        assert!(!is_held(&lock), "{}", sandbox.enforced().kind);
    }
}

/// Who holds the lock on a file, by the kernel's list.
fn lock_holder(locks: &str, file: &Path) -> Option<i32> {
    use std::os::unix::fs::MetadataExt;
    let inode = format!(":{}", fs::metadata(file).ok()?.ino());
    let line = locks.lines().find(|line| line.split_whitespace().nth(5).is_some_and(|id| id.ends_with(&inode)))?;
    line.split_whitespace().nth(4)?.parse().ok()
}

/// Passes on what is said.
struct Told(mpsc::UnboundedSender<String>);

impl Output for Told {
    fn say(&self, text: String) -> Saying<'_> {
        self.0.send(text).ok();
        Box::pin(async {})
    }
}

#[tokio::test]
async fn an_interrupt_ends_the_command_and_its_daemons() {
    for sandbox in [cages().await, std::slice::from_ref(free().await)].concat_refs() {
        let place = Place::new();
        let (tell, mut told) = mpsc::unbounded_channel();
        let script = format!("{DAEMON} print 'ready'; POSIX::pause() while 1");
        let argv = ["/usr/bin/perl", "-e", &script].map(str::to_owned).to_vec();
        let exec = place.exec(mode_of(sandbox), ExecCommand::Argv(argv));
        let mut run = Box::pin(sandbox.run(exec, Arc::new(Told(tell))));
        let said = tokio::select! {
            ran = &mut run => panic!("it ended: {ran:?}"),
            said = told.recv() => said.unwrap(),
        };
        assert_eq!(said, "ready");
        assert!(is_held(&place.workspace.join("lock")));
        // What is dropped here is what the runtime drops at an interrupt.
        drop(run);
        released(place.workspace.join("lock")).await;
    }
}

#[tokio::test]
async fn what_is_written_is_told_as_it_comes_with_both_streams_in_their_order() {
    let place = Place::new();
    for cage in cages().await {
        let (tell, mut told) = mpsc::unbounded_channel();
        let exec = place.exec(
            SandboxMode::WorkspaceWrite,
            ExecCommand::Shell("echo one; echo two >&2; echo three; printf '\\xe2\\x82'; printf '\\xac\\n'".into()),
        );
        let ran = cage.run(exec, Arc::new(Told(tell))).await;
        assert_eq!(ran.output, "one\ntwo\nthree\n€\n");
        let mut live = String::new();
        while let Some(text) = told.recv().await {
            live.push_str(&text);
        }
        assert_eq!(live, ran.output);
    }
}

#[tokio::test]
async fn the_environment_is_ours_alone() {
    let place = Place::new();
    for sandbox in cages_with(|config| config.env_pass = vec!["CARGO_MANIFEST_DIR".to_owned()]).await {
        let ran = place.shell(&sandbox, "env | cut -d= -f1 | sort | tr '\\n' ' '").await;
        let names = "CARGO_MANIFEST_DIR HOME LANG PATH PWD SHLVL TERM TMPDIR _ ";
        assert_eq!(ran.output, names, "{}", sandbox.enforced().kind);
        let ran =
            place.shell(&sandbox, "test $HOME = $TMPDIR && echo x > $HOME/x && cat $TMPDIR/x && echo $TMPDIR").await;
        let tmp = ran.output.strip_prefix("x\n").unwrap().trim();
        assert!(!Path::new(tmp).exists(), "what is for the time of a command is gone after it");
    }
}
