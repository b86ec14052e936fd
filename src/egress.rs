//! HTTP to addresses that users name, which must not become a way into the network that the server stands in.
//!
//! ```text
//! text --Egress::check--> scheme, user, port, literal address --send--> every address of a name, as it is resolved
//! ```
//! A literal address is judged as the URL's own parser reads it, so that `2130706433`, `0x7f.1` and `[::ffff:7f00:1]`
//! are what they are. A name is judged where it is resolved for the connection itself: what a name said before, or
//! says next, does not matter. A redirect is an answer and is not followed, no proxy is asked, whatever the
//! environment says. How long it takes and how much is read have bounds.
//!
//! Only what the internet at large routes is let through, and of that only to the ports 80, 443 and those from 1024
//! on: the ones below belong to other protocols, which might take an HTTP request for something else. What
//! `egress.allow` names, an address, a network or a host, is let through whatever it is.
//!
//! Invariants: no request leaves but through [`Egress::send`], which checks; an error names the host and the rule, and
//! neither an address that the host has nor what stands behind it in the URL.
//! Absent on purpose: retries, cookies, a client that could be handed out: it would connect to a literal address
//! without asking.

use std::{
    error::Error as StdError,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    str::FromStr,
    sync::Arc,
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use reqwest::{
    Client, Method, Url,
    dns::{Addrs, Name, Resolve, Resolving},
    header::{HeaderMap, HeaderName, HeaderValue, RETRY_AFTER},
    redirect::Policy,
};

/// Until there is a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Something that is let through although the rules refuse it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Allowed {
    Network(IpNet),
    /// A name as it stands in URLs, whatever addresses it has.
    Host(String),
}

/// A text that is neither an address, nor a network, nor a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("is neither an address, nor a network such as 10.0.0.0/8, nor the name of a host")]
pub struct BadAllowed;

impl FromStr for Allowed {
    type Err = BadAllowed;

    fn from_str(text: &str) -> Result<Self, BadAllowed> {
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(Self::Network(address.to_canonical().into()));
        }
        if let Ok(network) = text.parse::<IpNet>() {
            return Ok(Self::Network(network));
        }
        // As a URL would have it, so that the two can be compared.
        let host = |host: &str| Url::parse(&format!("http://{host}/")).ok()?.host_str().map(unrooted);
        let is_name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
        match host(text) {
            Some(name) if text.bytes().all(is_name) && literal(&name).is_none() && !name.is_empty() => {
                Ok(Self::Host(name))
            }
            _ => Err(BadAllowed),
        }
    }
}

/// Why a request is not made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("the URL cannot be read")]
    Url,
    #[error("only http and https URLs are requested")]
    Scheme,
    #[error("the URL holds a user or a password")]
    Credentials,
    #[error("the URL names port {0}, and only 80, 443 and those from 1024 on are requested")]
    Port(u16),
    #[error("{host} is {reach}, which is not requested")]
    Address { host: String, reach: Reach },
    #[error("`{0}` is no header, or its value holds characters that no header may hold")]
    Header(String),
}

/// Why an address is not let through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reach {
    Loopback,
    Unspecified,
    Private,
    LinkLocal,
    Metadata,
    Shared,
    Multicast,
    Broadcast,
    Documentation,
    Reserved,
    /// An IPv4 address within an IPv6 address, in a way that nobody needs.
    Embedded,
}

impl fmt::Display for Reach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Loopback => "a loopback address",
            Self::Unspecified => "an unspecified address",
            Self::Private => "an address of a private network",
            Self::LinkLocal => "a link-local address",
            Self::Metadata => "an address of a cloud's metadata service",
            Self::Shared => "an address of a provider's own network",
            Self::Multicast => "a multicast address",
            Self::Broadcast => "a broadcast address",
            Self::Documentation => "an address for documentation or benchmarks",
            Self::Reserved => "a reserved address",
            Self::Embedded => "an IPv4 address in disguise",
        })
    }
}

/// Why there is no answer. A status is an answer, whatever it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EgressError {
    #[error(transparent)]
    Refused(#[from] Refused),
    #[error("the name of {host} cannot be resolved")]
    Unresolved { host: String },
    #[error("cannot connect to {host}")]
    Unreachable { host: String },
    #[error("{host} did not answer in time")]
    Timeout { host: String },
    #[error("the connection to {host} broke before its answer was whole")]
    Broken { host: String },
}

/// No client can be made, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no HTTP client can be made: {0}")]
pub struct NoClient(String);

/// A request that somebody wants made.
#[derive(Debug, Clone)]
pub struct Outgoing<'a> {
    pub method: Method,
    pub url: &'a str,
    pub headers: Vec<(&'a str, String)>,
    pub body: Bytes,
    /// For all of it, the answer's body included.
    pub timeout: Duration,
    /// The most that is read of the answer's body.
    pub read: usize,
}

impl<'a> Outgoing<'a> {
    /// A POST of `body`: 30 s, and 64 KiB of the answer.
    pub fn post(url: &'a str, headers: Vec<(&'a str, String)>, body: Bytes) -> Self {
        Self { method: Method::POST, url, headers, body, timeout: Duration::from_secs(30), read: 64 << 10 }
    }
}

/// What was answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    /// When to come back, if that was said in seconds.
    pub retry_after: Option<Duration>,
    /// As much of it as was asked for.
    pub body: Bytes,
}

impl Answer {
    pub const fn is_success(&self) -> bool {
        self.status >= 200 && self.status < 300
    }
}

/// The way out. Cheap to clone; clones share their connections.
#[derive(Clone)]
pub struct Egress {
    client: Client,
    allow: Arc<[Allowed]>,
}

impl fmt::Debug for Egress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Egress").field("allow", &self.allow).finish_non_exhaustive()
    }
}

impl Egress {
    /// A way out with the names of the system.
    pub fn new(allow: impl Into<Vec<Allowed>>) -> Result<Self, NoClient> {
        Self::resolving(allow, Arc::new(System))
    }

    /// A way out with names of the host's own.
    pub fn resolving(allow: impl Into<Vec<Allowed>>, names: Arc<dyn Resolve>) -> Result<Self, NoClient> {
        let allow: Arc<[Allowed]> = allow.into().into();
        let client = Client::builder()
            .user_agent(concat!("raddle/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_TIMEOUT)
            .redirect(Policy::none())
            .referer(false)
            .no_proxy()
            .dns_resolver(Guard { names, allow: allow.clone() })
            .build()
            .map_err(|why| NoClient(why.to_string()))?;
        Ok(Self { client, allow })
    }

    /// Whether a request to `url` might be made. What a name resolves to is judged when it is.
    pub fn check(&self, url: &str) -> Result<Url, Refused> {
        // The parser drops line ends and trims spaces; whoever wrote them meant something else.
        if url.bytes().any(|byte| byte.is_ascii_control() || byte == b' ') {
            return Err(Refused::Url);
        }
        let url = Url::parse(url).map_err(|_| Refused::Url)?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(Refused::Scheme);
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(Refused::Credentials);
        }
        let host = url.host_str().ok_or(Refused::Url)?;
        let address = literal(host);
        let allowed = match address {
            Some(address) => allows_address(&self.allow, address),
            None => allows_host(&self.allow, host),
        };
        match url.port_or_known_default() {
            Some(80 | 443 | 1024..) => {}
            Some(1..) if allowed => {}
            port => return Err(Refused::Port(port.unwrap_or_default())),
        }
        match address.and_then(reach) {
            Some(reach) if !allowed => Err(Refused::Address { host: host.to_owned(), reach }),
            _ => Ok(url),
        }
    }

    /// Makes the request and reads the answer, or as much of it as was asked for.
    pub async fn send(&self, outgoing: Outgoing<'_>) -> Result<Answer, EgressError> {
        let url = self.check(outgoing.url)?;
        let host = url.host_str().unwrap_or_default().to_owned();
        let request = self
            .client
            .request(outgoing.method, url)
            .headers(headers(&outgoing.headers)?)
            .body(outgoing.body)
            .timeout(outgoing.timeout);
        let mut response = request.send().await.map_err(|why| failed(&host, &why))?;
        let status = response.status().as_u16();
        let seconds = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
        let mut body = BytesMut::new();
        while body.len() < outgoing.read {
            let Some(piece) = response.chunk().await.map_err(|why| failed(&host, &why))? else { break };
            body.extend_from_slice(&piece[..piece.len().min(outgoing.read - body.len())]);
        }
        Ok(Answer { status, retry_after: seconds.map(Duration::from_secs), body: body.freeze() })
    }
}

fn headers(pairs: &[(&str, String)]) -> Result<HeaderMap, Refused> {
    let header = |(name, value): &(&str, String)| {
        let bad = || Refused::Header((*name).to_owned());
        let header = HeaderName::from_str(name).map_err(|_| bad())?;
        Ok((header, HeaderValue::from_str(value).map_err(|_| bad())?))
    };
    pairs.iter().map(header).collect()
}

/// What went wrong, in words that hold the host at most: reqwest's own hold the URL, and causes hold addresses.
fn failed(host: &str, why: &reqwest::Error) -> EgressError {
    let mut cause: Option<&(dyn StdError + 'static)> = Some(why);
    while let Some(found) = cause {
        if let Some(refused) = found.downcast_ref::<Refused>() {
            return EgressError::Refused(refused.clone());
        }
        cause = found.source();
    }
    let host = host.to_owned();
    if why.is_timeout() {
        EgressError::Timeout { host }
    } else if why.is_dns() {
        EgressError::Unresolved { host }
    } else if why.is_connect() {
        EgressError::Unreachable { host }
    } else {
        EgressError::Broken { host }
    }
}

/// The names of the system.
struct System;

impl Resolve for System {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            Ok(Box::new(found.collect::<Vec<_>>().into_iter()) as Addrs)
        })
    }
}

/// Names without the addresses that are not let through.
struct Guard {
    names: Arc<dyn Resolve>,
    allow: Arc<[Allowed]>,
}

impl Resolve for Guard {
    fn resolve(&self, name: Name) -> Resolving {
        let host = name.as_str().to_owned();
        let (found, allow) = (self.names.resolve(name), self.allow.clone());
        Box::pin(async move {
            let found = found.await?;
            if allows_host(&allow, &host) {
                return Ok(found);
            }
            let mut refused = None;
            let public: Vec<SocketAddr> = found
                .filter(|found| match reach(found.ip()) {
                    Some(_) if allows_address(&allow, found.ip()) => true,
                    Some(why) => {
                        refused = Some(why);
                        false
                    }
                    None => true,
                })
                .collect();
            match refused {
                Some(reach) if public.is_empty() => Err(Refused::Address { host, reach }.into()),
                _ => Ok(Box::new(public.into_iter()) as Addrs),
            }
        })
    }
}

/// The address that a host of a URL is, if it is one.
fn literal(host: &str) -> Option<IpAddr> {
    match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(host) => host.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
        None => host.parse::<Ipv4Addr>().ok().map(IpAddr::V4),
    }
}

/// A name without the dot that may end it, in lower case.
fn unrooted(host: &str) -> String {
    host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase()
}

fn allows_address(allow: &[Allowed], address: IpAddr) -> bool {
    let address = address.to_canonical();
    allow.iter().any(|allowed| matches!(allowed, Allowed::Network(network) if network.contains(&address)))
}

fn allows_host(allow: &[Allowed], host: &str) -> bool {
    let host = unrooted(host);
    allow.iter().any(|allowed| matches!(allowed, Allowed::Host(known) if *known == host))
}

/// Why an address is not let through; `None` for those of the internet at large.
pub fn reach(address: IpAddr) -> Option<Reach> {
    match address {
        IpAddr::V4(address) => reach_v4(address),
        IpAddr::V6(address) => reach_v6(address),
    }
}

const fn v4(reach: Reach, [a, b, c, d]: [u8; 4], length: u8) -> (Reach, Ipv4Net) {
    (reach, Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), length))
}

const fn v6(reach: Reach, [a, b, c, d, e, f, g, h]: [u16; 8], length: u8) -> (Reach, Ipv6Net) {
    (reach, Ipv6Net::new_assert(Ipv6Addr::new(a, b, c, d, e, f, g, h), length))
}

/// The first one that holds an address says why; narrow ones stand before what they are part of.
const V4: [(Reach, Ipv4Net); 22] = [
    v4(Reach::Metadata, [169, 254, 169, 254], 32),
    v4(Reach::Metadata, [169, 254, 170, 2], 32),
    v4(Reach::Metadata, [100, 100, 100, 200], 32),
    v4(Reach::Metadata, [192, 0, 0, 192], 32),
    v4(Reach::Metadata, [168, 63, 129, 16], 32),
    v4(Reach::Unspecified, [0, 0, 0, 0], 8),
    v4(Reach::Loopback, [127, 0, 0, 0], 8),
    v4(Reach::Private, [10, 0, 0, 0], 8),
    v4(Reach::Private, [172, 16, 0, 0], 12),
    v4(Reach::Private, [192, 168, 0, 0], 16),
    v4(Reach::LinkLocal, [169, 254, 0, 0], 16),
    v4(Reach::Shared, [100, 64, 0, 0], 10),
    v4(Reach::Documentation, [192, 0, 2, 0], 24),
    v4(Reach::Documentation, [198, 51, 100, 0], 24),
    v4(Reach::Documentation, [203, 0, 113, 0], 24),
    v4(Reach::Documentation, [198, 18, 0, 0], 15),
    v4(Reach::Multicast, [224, 0, 0, 0], 4),
    v4(Reach::Broadcast, [255, 255, 255, 255], 32),
    v4(Reach::Reserved, [192, 0, 0, 0], 24),
    v4(Reach::Reserved, [192, 88, 99, 0], 24),
    v4(Reach::Reserved, [192, 52, 193, 0], 24),
    v4(Reach::Reserved, [240, 0, 0, 0], 4),
];

/// What is to be told apart by name; whatever is not in `2000::/3` is refused anyway.
const V6: [(Reach, Ipv6Net); 15] = [
    v6(Reach::Metadata, [0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254], 128),
    v6(Reach::Metadata, [0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254], 128),
    v6(Reach::Unspecified, [0; 8], 128),
    v6(Reach::Loopback, [0, 0, 0, 0, 0, 0, 0, 1], 128),
    v6(Reach::LinkLocal, [0xfe80, 0, 0, 0, 0, 0, 0, 0], 10),
    v6(Reach::Private, [0xfc00, 0, 0, 0, 0, 0, 0, 0], 7),
    v6(Reach::Private, [0xfec0, 0, 0, 0, 0, 0, 0, 0], 10),
    v6(Reach::Multicast, [0xff00, 0, 0, 0, 0, 0, 0, 0], 8),
    // 6to4 and Teredo; what is left of `::/32` is IPv4, compatible or translated in the oldest way.
    v6(Reach::Embedded, [0x2002, 0, 0, 0, 0, 0, 0, 0], 16),
    v6(Reach::Embedded, [0x2001, 0, 0, 0, 0, 0, 0, 0], 32),
    v6(Reach::Embedded, [0; 8], 32),
    v6(Reach::Embedded, [0x64, 0xff9b, 1, 0, 0, 0, 0, 0], 48),
    v6(Reach::Documentation, [0x2001, 0xdb8, 0, 0, 0, 0, 0, 0], 32),
    v6(Reach::Documentation, [0x3fff, 0, 0, 0, 0, 0, 0, 0], 20),
    v6(Reach::Reserved, [0x2001, 0, 0, 0, 0, 0, 0, 0], 23),
];

/// Where the internet at large is.
const GLOBAL: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 0), 3);
/// The prefix under which a network without IPv4 reaches the IPv4 internet: all names have such addresses there.
const NAT64: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0, 0), 96);

fn reach_v4(address: Ipv4Addr) -> Option<Reach> {
    V4.iter().find(|(_, network)| network.contains(&address)).map(|(reach, _)| *reach)
}

fn reach_v6(address: Ipv6Addr) -> Option<Reach> {
    if let Some(mapped) = address.to_ipv4_mapped() {
        return reach_v4(mapped);
    }
    let [.., a, b, c, d] = address.octets();
    if NAT64.contains(&address) {
        return reach_v4(Ipv4Addr::new(a, b, c, d));
    }
    if let Some((reach, _)) = V6.iter().find(|(_, network)| network.contains(&address)) {
        return Some(*reach);
    }
    // ISATAP: the tunnel's end is in the last half.
    let [.., high, low, _, _] = address.segments();
    let isatap = high & 0xfdff == 0 && low == 0x5efe;
    match (GLOBAL.contains(&address), isatap) {
        (false, _) => Some(Reach::Reserved),
        (true, true) => Some(Reach::Embedded),
        (true, false) => None,
    }
}

#[cfg(test)]
mod tests;
