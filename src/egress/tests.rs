//! Attacks by name. Each is first seen to reach a server on loopback by way of an ordinary client, and then refused.

use std::{
    net::SocketAddr,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use super::*;

/// An internal service: remembers what reached it.
struct Inside {
    at: SocketAddr,
    heard: Arc<Mutex<Vec<String>>>,
}

impl Inside {
    /// Answers every request with `answer`, or with 200.
    async fn on(address: &str, answer: Option<String>) -> Self {
        let listener = TcpListener::bind((address, 0)).await.unwrap();
        let at = listener.local_addr().unwrap();
        let heard: Arc<Mutex<Vec<String>>> = Arc::default();
        let hears = heard.clone();
        let answer = answer.unwrap_or_else(|| "HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nsecret".to_owned());
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let (hears, answer) = (hears.clone(), answer.clone());
                tokio::spawn(async move {
                    let mut head = Vec::new();
                    let mut piece = [0; 1024];
                    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
                        match stream.read(&mut piece).await {
                            Ok(read @ 1..) => head.extend_from_slice(&piece[..read]),
                            _ => return,
                        }
                    }
                    hears.lock().unwrap().push(String::from_utf8_lossy(&head).into_owned());
                    drop(stream.write_all(answer.as_bytes()).await);
                    drop(stream.shutdown().await);
                });
            }
        });
        Self { at, heard }
    }

    async fn start() -> Self {
        Self::on("127.0.0.1", None).await
    }

    fn heard(&self) -> Vec<String> {
        std::mem::take(&mut *self.heard.lock().unwrap())
    }
}

/// A client that trusts whoever names the URL.
fn plain() -> Client {
    Client::builder().no_proxy().build().unwrap()
}

async fn reaches(client: &Client, url: &str) -> bool {
    client.get(url).send().await.is_ok()
}

fn guarded() -> Egress {
    Egress::new([]).unwrap()
}

async fn get(egress: &Egress, url: &str) -> Result<Answer, EgressError> {
    let post = Outgoing::post(url, Vec::new(), Bytes::new());
    egress.send(Outgoing { method: Method::GET, ..post }).await
}

async fn refused(egress: &Egress, url: &str) -> Refused {
    match get(egress, url).await {
        Err(EgressError::Refused(refused)) => refused,
        other => panic!("{url}: {other:?}"),
    }
}

/// The ordinary client reaches the service by `url`, ours does not, for this reason.
async fn attack(url: &str, inside: &Inside, reach: Reach) {
    assert!(reaches(&plain(), url).await, "{url} is no attack");
    assert_eq!(inside.heard().len(), 1, "{url} is no attack");
    match refused(&guarded(), url).await {
        Refused::Address { reach: found, .. } => assert_eq!(found, reach, "{url}"),
        other => panic!("{url}: {other}"),
    }
    assert!(inside.heard().is_empty(), "{url}");
}

#[tokio::test]
async fn loopback_is_refused_however_it_is_written() {
    let inside = Inside::start().await;
    let port = inside.at.port();
    let spellings = [
        "127.0.0.1",
        "127.1",
        "127.0.1",
        "2130706433",
        "0x7f000001",
        "0x7f.0.0.1",
        "0X7F.1",
        "0177.0.0.1",
        "017700000001",
        "0177.0x0.1",
        "127.0.0.1.",
        "%31%32%37.0.0.1",
        // Digits and full stops of other scripts.
        "\u{ff11}\u{ff12}\u{ff17}.0.0.1",
        "127\u{3002}0\u{3002}0\u{3002}1",
        "\u{2460}\u{2461}\u{2466}.0.0.1",
    ];
    for host in spellings {
        attack(&format!("http://{host}:{port}/"), &inside, Reach::Loopback).await;
    }
}

#[tokio::test]
async fn the_unspecified_address_which_is_loopback_too_is_refused() {
    let inside = Inside::start().await;
    for host in ["0.0.0.0", "0", "0x0", "00.0"] {
        attack(&format!("http://{host}:{}/", inside.at.port()), &inside, Reach::Unspecified).await;
    }
}

#[tokio::test]
async fn an_ipv4_address_within_an_ipv6_address_is_refused() {
    let inside = Inside::start().await;
    for host in ["[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[0:0:0:0:0:ffff:7f00:0001]"] {
        attack(&format!("http://{host}:{}/", inside.at.port()), &inside, Reach::Loopback).await;
    }
}

#[tokio::test]
async fn loopback_of_ipv6_is_refused() {
    let inside = Inside::on("::1", None).await;
    for host in ["[::1]", "[0:0:0:0:0:0:0:1]", "[0000::0001]"] {
        attack(&format!("http://{host}:{}/", inside.at.port()), &inside, Reach::Loopback).await;
    }
}

#[tokio::test]
async fn a_name_that_is_loopback_is_refused() {
    let inside = Inside::start().await;
    for host in ["localhost", "LOCALHOST"] {
        attack(&format!("http://{host}:{}/", inside.at.port()), &inside, Reach::Loopback).await;
    }
}

/// Names as an attacker's own server has them: answers in turn, the last one for ever.
struct Turns {
    answers: Vec<Vec<IpAddr>>,
    asked: AtomicUsize,
}

impl Turns {
    fn new(answers: &[&[&str]]) -> Arc<Self> {
        let address = |text: &&str| text.parse().unwrap();
        let answers = answers.iter().map(|answer| answer.iter().map(address).collect()).collect();
        Arc::new(Self { answers, asked: AtomicUsize::new(0) })
    }

    fn next(&self) -> Vec<SocketAddr> {
        let turn = self.asked.fetch_add(1, SeqCst).min(self.answers.len() - 1);
        self.answers[turn].iter().map(|address| (*address, 0).into()).collect()
    }
}

impl Resolve for Turns {
    fn resolve(&self, _: Name) -> Resolving {
        let answer = self.next();
        Box::pin(async move { Ok(Box::new(answer.into_iter()) as Addrs) })
    }
}

/// Knows no name.
struct Nobody;

impl Resolve for Nobody {
    fn resolve(&self, _: Name) -> Resolving {
        Box::pin(async { Err("no such name, says 10.0.0.53".into()) })
    }
}

const PUBLIC: &str = "93.184.215.14";

#[tokio::test]
async fn a_name_that_changes_between_check_and_use_is_refused() {
    let inside = Inside::start().await;
    let url = format!("http://rebind.example:{}/", inside.at.port());
    let names = || Turns::new(&[&[PUBLIC], &["127.0.0.1"]]);

    // Who resolves, judges, and then lets a client resolve again, judged something else.
    let theirs = names();
    assert!(theirs.next().iter().all(|found| reach(found.ip()).is_none()));
    let naive = Client::builder().no_proxy().dns_resolver(theirs).build().unwrap();
    assert!(reaches(&naive, &url).await);
    assert_eq!(inside.heard().len(), 1);

    let ours = names();
    let egress = Egress::resolving([], ours.clone()).unwrap();
    egress.check(&url).unwrap();
    ours.next();
    let why = refused(&egress, &url).await;
    assert_eq!(why, Refused::Address { host: "rebind.example".to_owned(), reach: Reach::Loopback });
    assert!(inside.heard().is_empty());
    assert_eq!(ours.asked.load(SeqCst), 2, "the answer that was judged is the one that would have been used");
}

#[tokio::test]
async fn of_a_name_with_several_addresses_none_within_is_tried() {
    let inside = Inside::start().await;
    let url = format!("http://both.example:{}/", inside.at.port());
    // A client goes on to the second address when the first does not answer: nothing listens there.
    let both: &[&[&str]] = &[&["127.0.0.9", "127.0.0.1"]];
    let naive = Client::builder().no_proxy().dns_resolver(Turns::new(both)).build().unwrap();
    assert!(reaches(&naive, &url).await);
    assert_eq!(inside.heard().len(), 1);

    let mixed = Guard { names: Turns::new(&[&["127.0.0.1", PUBLIC, "::1", "10.0.0.1"]]), allow: Arc::new([]) };
    let left: Vec<_> = mixed.resolve("both.example".parse().unwrap()).await.unwrap().map(|found| found.ip()).collect();
    assert_eq!(left, [PUBLIC.parse::<IpAddr>().unwrap()]);
    let egress = Egress::resolving([], Turns::new(both)).unwrap();
    assert!(matches!(refused(&egress, &url).await, Refused::Address { reach: Reach::Loopback, .. }));
    assert!(inside.heard().is_empty());
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let inside = Inside::on("127.0.0.2", None).await;
    for status in ["301 x", "302 x", "303 x", "307 x", "308 x"] {
        let location = format!("HTTP/1.1 {status}\r\nlocation: http://{}/\r\ncontent-length: 0\r\n\r\n", inside.at);
        let outside = Inside::on("127.0.0.1", Some(location)).await;
        let url = format!("http://{}/", outside.at);
        assert!(reaches(&plain(), &url).await);
        assert_eq!(inside.heard().len(), 1, "{status}");

        let egress = Egress::new(["127.0.0.1/32".parse().unwrap()]).unwrap();
        let answer = get(&egress, &url).await.unwrap();
        assert!(answer.status / 100 == 3 && !answer.is_success());
        assert_eq!(outside.heard().len(), 2);
        assert!(inside.heard().is_empty(), "{status}");
    }
}

/// There is no metadata service here: that an ordinary client asks for it is seen by the proxy that it asks.
#[tokio::test]
async fn the_metadata_services_of_clouds_are_refused() {
    let proxy = Inside::start().await;
    let through = reqwest::Proxy::http(format!("http://{}", proxy.at)).unwrap();
    let naive = Client::builder().proxy(through).build().unwrap();
    let hosts = [
        "169.254.169.254",
        "0xa9fea9fe",
        "2852039166",
        "0251.0376.0251.0376",
        "[::ffff:169.254.169.254]",
        "[64:ff9b::a9fe:a9fe]",
        "[fd00:ec2::254]",
        "[fd20:ce::254]",
        "169.254.170.2",
        "100.100.100.200",
        "192.0.0.192",
        "168.63.129.16",
    ];
    for host in hosts {
        let url = format!("http://{host}/latest/meta-data/iam/security-credentials/");
        assert!(reaches(&naive, &url).await);
        assert!(proxy.heard()[0].starts_with("GET http://"), "{host}");
        match refused(&guarded(), &url).await {
            Refused::Address { reach: Reach::Metadata, .. } => {}
            other => panic!("{host}: {other}"),
        }
    }
    let named = Egress::resolving([], Turns::new(&[&["169.254.169.254"]])).unwrap();
    let why = refused(&named, "http://metadata.example/").await;
    assert_eq!(why.to_string(), "metadata.example is an address of a cloud's metadata service, which is not requested");
}

#[tokio::test]
async fn a_host_that_hides_behind_a_user_is_refused() {
    let inside = Inside::start().await;
    for user in ["allowed.example", "allowed.example:443", "allowed.example%2f", ":x"] {
        let url = format!("http://{user}@{}/", inside.at);
        assert!(reaches(&plain(), &url).await);
        assert_eq!(inside.heard().len(), 1);
        assert_eq!(refused(&guarded(), &url).await, Refused::Credentials, "{url}");
    }
    // Where parsers disagree about the host, the one that judges is the one that connects.
    for trick in [r"http://AT\@allowed.example/", "http://AT#@allowed.example/", "http://AT?@allowed.example/"] {
        let url = trick.replace("AT", &inside.at.to_string());
        attack(&url, &inside, Reach::Loopback).await;
    }
    assert!(inside.heard().is_empty());
}

#[tokio::test]
async fn no_other_scheme_is_spoken() {
    let inside = Inside::start().await;
    let schemes = [
        "file:///etc/passwd",
        "gopher://AT/_GET%20/",
        "ftp://AT/",
        "dict://AT/stat",
        "ldap://AT/",
        "ws://AT/",
        "unix:///run/service.sock",
        "http+unix://%2Frun%2Fservice.sock/",
        "data:text/plain,x",
        "javascript:0",
    ];
    for scheme in schemes {
        let url = scheme.replace("AT", &inside.at.to_string());
        assert_eq!(refused(&guarded(), &url).await, Refused::Scheme, "{url}");
    }
    for no_url in ["", "//127.0.0.1/", "/etc/passwd", "http://", "http://[::1%25lo]/", "http://1.2.3.4.5.6:99999/"] {
        assert_eq!(refused(&guarded(), no_url).await, Refused::Url, "{no_url}");
    }
    assert!(inside.heard().is_empty());
}

#[tokio::test]
async fn a_line_end_in_a_url_is_refused() {
    let inside = Inside::start().await;
    for split in ["/a\r\nX-Injected: 1", "/a\nb", "/\ta", "/a b", " ", "/\u{0}", "/\u{7f}"] {
        let url = format!("http://{}{split}", inside.at);
        // An ordinary client asks for what nobody wrote.
        assert!(reaches(&plain(), &url).await);
        assert_eq!(inside.heard().len(), 1);
        let egress = Egress::new(["127.0.0.0/8".parse().unwrap()]).unwrap();
        assert_eq!(refused(&egress, &url).await, Refused::Url, "{url:?}");
    }
    assert!(inside.heard().is_empty());
}

#[tokio::test]
async fn a_line_end_in_a_header_is_refused() {
    let inside = Inside::start().await;
    let value = "1\r\nX-Injected: yes";
    let mut stream = TcpStream::connect(inside.at).await.unwrap();
    stream.write_all(format!("GET / HTTP/1.1\r\nhost: x\r\nx-id: {value}\r\n\r\n").as_bytes()).await.unwrap();
    stream.read_to_end(&mut Vec::new()).await.unwrap();
    assert!(inside.heard()[0].contains("\r\nX-Injected: yes\r\n"));

    let egress = Egress::new(["127.0.0.0/8".parse().unwrap()]).unwrap();
    let url = format!("http://{}/", inside.at);
    for (name, value) in [("x-id", value), ("x-id\r\nx-injected", "1"), ("x-id", "1\n2"), ("x-id", "\u{0}"), ("", "1")]
    {
        let outgoing = Outgoing::post(&url, vec![(name, value.to_owned())], Bytes::new());
        let refused = egress.send(outgoing).await.unwrap_err();
        assert_eq!(refused, EgressError::Refused(Refused::Header(name.to_owned())));
    }
    assert!(inside.heard().is_empty());
}

#[tokio::test]
async fn ports_of_other_protocols_are_refused() {
    let port = |url: &str| guarded().check(url).map(|_| ());
    for fine in ["http://example.com/", "https://example.com", "http://example.com:443/", "http://example.com:8080/"] {
        assert_eq!(port(fine), Ok(()));
    }
    for other in [1, 22, 25, 53, 110, 445, 631, 1023] {
        assert_eq!(port(&format!("http://example.com:{other}/")), Err(Refused::Port(other)));
    }
    assert_eq!(port("http://example.com:0/"), Err(Refused::Port(0)));
    let egress = Egress::new(["sink.internal".parse().unwrap()]).unwrap();
    assert!(egress.check("http://sink.internal:81/").is_ok());
}

#[tokio::test]
async fn what_is_allowed_is_reached_and_nothing_beside_it() {
    let inside = Inside::start().await;
    let port = inside.at.port();
    let allowing = |text: &str| Egress::new([text.parse().unwrap()]).unwrap();
    for (allow, host) in [
        ("127.0.0.1", "127.0.0.1"),
        ("127.0.0.0/8", "2130706433"),
        ("127.0.0.0/8", "localhost"),
        ("127.0.0.1", "[::ffff:127.0.0.1]"),
        ("localhost", "localhost"),
        ("LocalHost.", "LOCALHOST"),
    ] {
        let answer = get(&allowing(allow), &format!("http://{host}:{port}/")).await.unwrap();
        assert_eq!((answer.status, &answer.body[..]), (200, &b"secret"[..]), "{allow} {host}");
    }
    assert_eq!(inside.heard().len(), 6);
    for (allow, host) in [
        ("127.0.0.2", "127.0.0.1"),
        ("localhost", "127.0.0.1"),
        ("10.0.0.0/8", "localhost"),
        ("host", "localhost"),
        ("::1", "127.0.0.1"),
    ] {
        let url = format!("http://{host}:{port}/");
        assert!(matches!(refused(&allowing(allow), &url).await, Refused::Address { .. }), "{allow} {host}");
    }
    assert!(inside.heard().is_empty());
}

#[test]
fn what_may_be_allowed_is_an_address_a_network_or_a_host() {
    let parsed = |text: &str| text.parse::<Allowed>();
    assert_eq!(parsed("10.0.0.0/8"), Ok(Allowed::Network("10.0.0.0/8".parse().unwrap())));
    assert_eq!(parsed("::ffff:10.0.0.1"), parsed("10.0.0.1"));
    assert_eq!(parsed("Sink.Internal."), Ok(Allowed::Host("sink.internal".to_owned())));
    for bad in ["", "10.0.0.0/33", "http://a", "a:80", "a/b", "*.a", "user@a", "2130706433", "a b", "."] {
        assert_eq!(parsed(bad), Err(BadAllowed), "{bad}");
    }
}

#[tokio::test]
async fn an_answer_is_read_up_to_a_bound_and_an_error_names_the_host_alone() {
    let endless = format!("HTTP/1.1 429 x\r\nretry-after: 7\r\ncontent-length: 4000000\r\n\r\n{}", "x".repeat(200_000));
    let inside = Inside::on("127.0.0.1", Some(endless)).await;
    let egress = Egress::new(["127.0.0.0/8".parse().unwrap()]).unwrap();
    let url = format!("http://{}/path?token=hush", inside.at);
    let answer = egress.send(Outgoing { read: 1000, ..Outgoing::post(&url, Vec::new(), Bytes::new()) }).await.unwrap();
    assert_eq!((answer.status, answer.body.len()), (429, 1000));
    assert_eq!(answer.retry_after, Some(Duration::from_secs(7)));

    let whole = Outgoing { read: usize::MAX, ..Outgoing::post(&url, Vec::new(), Bytes::new()) };
    let broken = egress.send(whole).await.unwrap_err();
    assert_eq!(broken.to_string(), "the connection to 127.0.0.1 broke before its answer was whole");
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let closed = get(&egress, &format!("http://{closed}/path?token=hush")).await.unwrap_err();
    assert_eq!(closed.to_string(), "cannot connect to 127.0.0.1");
    let unnamed = Egress::resolving([], Arc::new(Nobody)).unwrap();
    let unnamed = get(&unnamed, "http://nobody.invalid/path?token=hush").await.unwrap_err();
    assert_eq!(unnamed.to_string(), "the name of nobody.invalid cannot be resolved");
}

#[tokio::test]
async fn whoever_does_not_answer_is_given_up() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let egress = Egress::new(["127.0.0.0/8".parse().unwrap()]).unwrap();
    let outgoing = Outgoing { timeout: Duration::from_millis(20), ..Outgoing::post(&url, Vec::new(), Bytes::new()) };
    let late = egress.send(outgoing).await.unwrap_err();
    assert_eq!(late, EgressError::Timeout { host: "127.0.0.1".to_owned() });
}

#[test]
fn only_the_internet_at_large_is_let_through() {
    let why = |text: &str| reach(text.parse().unwrap());
    let public = [
        "1.1.1.1",
        "8.8.8.8",
        PUBLIC,
        "9.255.255.255",
        "11.0.0.0",
        "100.63.255.255",
        "100.128.0.0",
        "126.255.255.255",
        "128.0.0.0",
        "169.253.255.255",
        "169.255.0.0",
        "172.15.255.255",
        "172.32.0.0",
        "192.167.255.255",
        "192.169.0.0",
        "198.17.255.255",
        "198.20.0.0",
        "223.255.255.255",
        "2606:4700:4700::1111",
        "2001:4860:4860::8888",
        "2a00::1",
        "::ffff:8.8.8.8",
        "64:ff9b::808:808",
    ];
    for address in public {
        assert_eq!(why(address), None, "{address}");
    }
    let refused: [(Reach, &[&str]); 11] = [
        (Reach::Unspecified, &["0.0.0.0", "0.255.255.255", "::", "::ffff:0:0"]),
        (Reach::Loopback, &["127.0.0.1", "127.255.255.255", "::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1"]),
        (Reach::Private, &["10.0.0.0", "10.255.255.255", "172.16.0.0", "172.31.255.255", "192.168.0.0"]),
        (Reach::Private, &["192.168.255.255", "fc00::", "fdff::1", "fec0::1", "::ffff:10.1.2.3", "64:ff9b::a01:203"]),
        (Reach::LinkLocal, &["169.254.0.0", "169.254.255.255", "fe80::1", "febf::1"]),
        (Reach::Metadata, &["169.254.169.254", "fd00:ec2::254", "::ffff:169.254.169.254"]),
        (Reach::Shared, &["100.64.0.0", "100.127.255.255"]),
        (Reach::Multicast, &["224.0.0.0", "239.255.255.255", "ff00::", "ff02::1"]),
        (Reach::Documentation, &["192.0.2.1", "198.51.100.1", "203.0.113.1", "198.18.0.0", "198.19.255.255"]),
        (Reach::Embedded, &["2002:7f00:1::", "2001:0:7f00:1::", "::127.0.0.1", "::ffff:0:7f00:1", "64:ff9b:1::7f00:1"]),
        (Reach::Reserved, &["192.0.0.1", "192.88.99.1", "240.0.0.0", "255.255.255.254", "2001:1::1", "4000::1"]),
    ];
    for (reach, addresses) in refused {
        for address in addresses {
            assert_eq!(why(address), Some(reach), "{address}");
        }
    }
    for (address, reach) in [
        ("255.255.255.255", Reach::Broadcast),
        ("2001:db8::1", Reach::Documentation),
        ("3fff:fff::1", Reach::Documentation),
        ("2a00::5efe:7f00:1", Reach::Embedded),
        ("2a00::200:5efe:7f00:1", Reach::Embedded),
        ("100::1", Reach::Reserved),
        ("5f00::1", Reach::Reserved),
        ("64:ff9b:2::1", Reach::Reserved),
    ] {
        assert_eq!(why(address), Some(reach), "{address}");
    }
}
