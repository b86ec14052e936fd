//! Who is connected: how many, and how many of each address.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, PoisonError},
};

/// The list of connections.
#[derive(Debug)]
pub(super) struct Guests {
    most: usize,
    most_of_one: usize,
    inside: Mutex<Inside>,
}

#[derive(Debug, Default)]
struct Inside {
    all: usize,
    of: HashMap<IpAddr, usize>,
}

/// A place on the list, given back when this is dropped.
#[derive(Debug)]
pub(super) struct Guest {
    guests: Arc<Guests>,
    address: Option<IpAddr>,
}

/// Which list has no place left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Full {
    Server,
    Address,
}

impl Guests {
    pub fn new(most: usize, most_of_one: usize) -> Arc<Self> {
        Arc::new(Self { most, most_of_one, inside: Mutex::default() })
    }

    pub fn enter(self: &Arc<Self>, ip: IpAddr) -> Result<Guest, Full> {
        let address = counted(ip);
        let mut inside = self.inside.lock().unwrap_or_else(PoisonError::into_inner);
        if inside.all >= self.most {
            return Err(Full::Server);
        }
        if let Some(address) = address {
            let of = inside.of.entry(address).or_default();
            if *of >= self.most_of_one {
                return Err(Full::Address);
            }
            *of += 1;
        }
        inside.all += 1;
        Ok(Guest { guests: self.clone(), address })
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let mut inside = self.guests.inside.lock().unwrap_or_else(PoisonError::into_inner);
        inside.all -= 1;
        if let Some(address) = self.address
            && let Some(of) = inside.of.get_mut(&address)
        {
            *of -= 1;
            if *of == 0 {
                inside.of.remove(&address);
            }
        }
    }
}

/// What an address is counted as: nobody has fewer than 64 bits of IPv6 to himself. The machine itself is not counted.
fn counted(ip: IpAddr) -> Option<IpAddr> {
    match ip.to_canonical() {
        ip if ip.is_loopback() => None,
        IpAddr::V6(ip) => Some(Ipv6Addr::from_bits(ip.to_bits() & (u128::MAX << 64)).into()),
        ip => Some(ip),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_list_that_is_full_takes_somebody_once_somebody_has_left() {
        let guests = Guests::new(2, 2);
        let (one, _two) = (guests.enter(ip("10.0.0.1")).unwrap(), guests.enter(ip("10.0.0.2")).unwrap());
        assert_eq!(guests.enter(ip("10.0.0.3")).unwrap_err(), Full::Server);
        drop(one);
        assert!(guests.enter(ip("10.0.0.3")).is_ok());
    }

    #[test]
    fn one_address_does_not_take_all_places() {
        let guests = Guests::new(10, 2);
        let _held = [guests.enter(ip("10.0.0.1")).unwrap(), guests.enter(ip("::ffff:10.0.0.1")).unwrap()];
        assert_eq!(guests.enter(ip("10.0.0.1")).unwrap_err(), Full::Address);
        assert!(guests.enter(ip("10.0.0.2")).is_ok());
    }

    #[test]
    fn a_network_of_ipv6_counts_as_one_address() {
        let guests = Guests::new(10, 1);
        let _held = guests.enter(ip("2001:db8::1")).unwrap();
        assert_eq!(guests.enter(ip("2001:db8::ffff:2")).unwrap_err(), Full::Address);
        assert!(guests.enter(ip("2001:db8:0:1::1")).is_ok());
    }

    #[test]
    fn the_machine_itself_may_have_all_places() {
        let guests = Guests::new(3, 1);
        let _held = ["127.0.0.1", "127.0.0.1", "::1"].map(|text| guests.enter(ip(text)).unwrap());
        assert_eq!(guests.enter(ip("127.0.0.1")).unwrap_err(), Full::Server);
    }

    #[test]
    fn addresses_that_are_gone_are_not_remembered() {
        let guests = Guests::new(3, 1);
        drop(guests.enter(ip("10.0.0.1")).unwrap());
        assert!(guests.inside.lock().unwrap().of.is_empty());
    }
}
