//! Places that everybody takes from, of which no tenant gets so many that none is left for the others.
//!
//! While the server knows more than one tenant, one of them holds at most a share of the places. A tenant that nobody
//! else shares the server with has all of them. What "knows" means is plain on purpose: a tenant that somebody made, or
//! that was named by a request since the start.
//!
//! Absent on purpose: waiting. Who finds no place is told to come back.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use raddle_domain::id::TenantId;

use crate::tenants::Tenants;

/// A number of places.
pub(crate) struct Places {
    all: usize,
    share: usize,
    tenants: Arc<Tenants>,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    all: usize,
    of: HashMap<TenantId, usize>,
}

/// Why there is no place.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum NoPlace {
    /// All are taken.
    Full,
    /// The tenant has its share.
    Share,
    /// The tenant has as many as its quota allows.
    Quota(u64),
}

/// A place, until it is dropped.
pub(crate) struct Hold {
    of: Option<TenantId>,
    places: Arc<Places>,
}

impl Places {
    pub fn new(all: usize, share_percent: u8, tenants: Arc<Tenants>) -> Arc<Self> {
        let share = (all * usize::from(share_percent.min(100)) / 100).max(1);
        Arc::new(Self { all, share, tenants, held: Mutex::default() })
    }

    /// Takes a place for a tenant, or for the server itself.
    pub fn take(self: &Arc<Self>, of: Option<TenantId>, quota: Option<u64>) -> Result<Hold, NoPlace> {
        let several = self.tenants.are_several();
        let mut held = self.held();
        if let Some(of) = of {
            let own = held.of.get(&of).copied().unwrap_or_default();
            match quota {
                Some(most) if own as u64 >= most => return Err(NoPlace::Quota(most)),
                _ if several && own >= self.share => return Err(NoPlace::Share),
                _ => {}
            }
        }
        if held.all >= self.all {
            return Err(NoPlace::Full);
        }
        held.all += 1;
        if let Some(of) = of {
            *held.of.entry(of).or_default() += 1;
        }
        drop(held);
        Ok(Hold { of, places: self.clone() })
    }

    /// Places that are taken.
    pub fn taken(&self) -> u64 {
        self.held().all as u64
    }

    /// Places that a tenant holds.
    pub fn taken_by(&self, tenant: TenantId) -> u64 {
        self.held().of.get(&tenant).copied().unwrap_or_default() as u64
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut held = self.places.held();
        held.all = held.all.saturating_sub(1);
        if let Some(of) = self.of
            && let Some(own) = held.of.get_mut(&of)
        {
            *own = own.saturating_sub(1);
            if *own == 0 {
                held.of.remove(&of);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(all: usize, share: u8, known: &[&str]) -> Arc<Places> {
        let tenants = Arc::new(Tenants::default());
        known.iter().for_each(|name| drop(tenants.account(name.parse().unwrap())));
        Places::new(all, share, tenants)
    }

    fn tenant(name: &str) -> Option<TenantId> {
        Some(name.parse().unwrap())
    }

    #[test]
    fn a_tenant_alone_has_every_place_and_one_among_others_its_share() {
        let alone = places(4, 50, &["a"]);
        let held: Vec<_> = (0..4).map(|_| alone.take(tenant("a"), None).ok().unwrap()).collect();
        assert_eq!(alone.take(tenant("a"), None).err(), Some(NoPlace::Full));
        drop(held);
        let shared = places(4, 50, &["a", "b"]);
        let held: Vec<_> = (0..2).map(|_| shared.take(tenant("a"), None).ok().unwrap()).collect();
        assert_eq!(shared.take(tenant("a"), None).err(), Some(NoPlace::Share));
        let other = shared.take(tenant("b"), None).ok().unwrap();
        assert_eq!((shared.taken(), shared.taken_by(tenant("a").unwrap())), (3, 2));
        drop((held, other));
        assert_eq!(shared.taken(), 0);
        assert!(shared.held().of.is_empty());
    }

    #[test]
    fn a_share_is_at_least_one_place_and_a_hundred_percent_is_none() {
        let few = places(3, 1, &["a", "b"]);
        let held = few.take(tenant("a"), None).ok().unwrap();
        assert_eq!(few.take(tenant("a"), None).err(), Some(NoPlace::Share));
        drop(held);
        let open = places(3, 100, &["a", "b"]);
        let held: Vec<_> = (0..3).map(|_| open.take(tenant("a"), None).ok().unwrap()).collect();
        assert_eq!(open.take(tenant("b"), None).err(), Some(NoPlace::Full));
        drop(held);
    }

    #[test]
    fn a_quota_holds_before_the_share_and_the_server_has_none() {
        let places = places(4, 50, &["a", "b"]);
        let held = places.take(tenant("a"), Some(1)).ok().unwrap();
        assert_eq!(places.take(tenant("a"), Some(1)).err(), Some(NoPlace::Quota(1)));
        let own: Vec<_> = (0..3).map(|_| places.take(None, None).ok().unwrap()).collect();
        assert_eq!(places.take(None, None).err(), Some(NoPlace::Full));
        drop((held, own));
    }

    #[test]
    fn records_of_the_server_itself_are_no_second_tenant() {
        let tenants = Tenants::default();
        tenants.account("a".parse().unwrap());
        tenants.account(TenantId::SYSTEM);
        assert!(!tenants.are_several());
        tenants.account("b".parse().unwrap());
        assert!(tenants.are_several());
        tenants.forget("b".parse().unwrap());
        assert!(!tenants.are_several());
    }
}
