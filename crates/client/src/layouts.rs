//! Numbers and places for new devices, fetched ahead, and what policies say of them.
//!
//! # Theory
//! An LCC gives layouts of devices that it owns from the start (O-2): this process's own, where it
//! has one. Else they are fetched in batches from all LCs in turn and used in turn, so that new
//! devices, and the work on them, spread over the servers. Where policies are set, the layout depends on the path: then each is asked for alone.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

use braid_local_controller::policy::{decides, lccs_for};
use braid_terms::{AckMode, ClusterMap, DataType, GroupLayout, Policy, PolicyQuestion};
use braid_wire::lcc::{Chosen, LccReply, LccRequest};
use tokio::sync::Notify;
use tokio::task::spawn_local;

use crate::Error;
use crate::reach::{Place, Reach};

/// Layouts for new devices of one kind.
pub struct Stock {
    reach: Rc<Reach>,
    data_type: DataType,
    batch: u32,
    /// The client's, for policies.
    priority: Option<u8>,
    ready: RefCell<VecDeque<Ready>>,
    /// Whom to ask next.
    turn: Cell<usize>,
    is_fetching: Cell<bool>,
    fetched: Notify,
    failure: RefCell<Option<Error>>,
}

/// A layout at hand.
struct Ready {
    layout: GroupLayout,
    /// Who owns it.
    place: Place,
    /// This process's own LCC, when it was asked for.
    local: Option<Place>,
}

impl Stock {
    pub fn new(
        reach: Rc<Reach>,
        data_type: DataType,
        batch: u32,
        priority: Option<u8>,
    ) -> Rc<Self> {
        // Clients that start at once do not all begin with the same LC.
        let turn = Cell::new(reach.env.random_below(1 << 16) as usize);
        Rc::new(Self {
            reach,
            data_type,
            batch,
            priority,
            ready: RefCell::default(),
            turn,
            is_fetching: Cell::new(false),
            fetched: Notify::new(),
            failure: RefCell::new(None),
        })
    }

    /// A layout that nobody else has.
    pub async fn take(self: &Rc<Self>, question: &PolicyQuestion) -> Result<GroupLayout, Error> {
        let map = self.reach.map().await?;
        if map.policies.iter().any(decides) {
            let mut layouts = self.ask(question.clone(), 1).await?;
            return layouts.pop().map(|ready| self.use_up(ready)).ok_or_else(none);
        }
        loop {
            let fetched = self.fetched.notified();
            if let Some(ready) = self.pop() {
                return Ok(self.use_up(ready));
            }
            fetched.await;
            let failure = self.failure.borrow().clone();
            if let Some(error) = failure.filter(|_| self.ready.borrow().is_empty()) {
                return Err(error);
            }
        }
    }

    /// A layout that nobody else has, if one is at hand and no policy depends on the path.
    pub fn take_ready(self: &Rc<Self>) -> Option<GroupLayout> {
        if !self.reach.known_map()?.policies.iter().any(decides) {
            self.pop().map(|ready| self.use_up(ready))
        } else {
            None
        }
    }

    /// The next one; not what was asked for before this process had the LCC of its own that it has now.
    fn pop(self: &Rc<Self>) -> Option<Ready> {
        let local = self.reach.local();
        let mut ready = self.ready.borrow_mut();
        let counts = |ready: &Ready| local.is_none() || ready.local == local;
        let taken = std::iter::from_fn(|| ready.pop_front()).find(counts);
        if ready.len() < self.batch as usize / 2 {
            drop(ready);
            self.begin_fetch();
        }
        taken
    }

    fn use_up(&self, ready: Ready) -> GroupLayout {
        let Ready { layout, place, .. } = ready;
        self.reach.learn_owner(layout.group(), place);
        layout
    }

    fn begin_fetch(self: &Rc<Self>) {
        if !self.is_fetching.replace(true) {
            spawn_local(self.clone().fetch());
        }
    }

    /// A batch from each of two LCs, mixed.
    async fn fetch(self: Rc<Self>) {
        let question = PolicyQuestion::default;
        let (one, other) =
            tokio::join!(self.ask(question(), self.batch), self.ask(question(), self.batch));
        let mut failure = None;
        let mut batches = Vec::new();
        for fetched in [one, other] {
            match fetched {
                Ok(layouts) => batches.push(layouts.into_iter()),
                Err(error) => failure = Some(error),
            }
        }
        let mut ready = self.ready.borrow_mut();
        *self.failure.borrow_mut() = if batches.is_empty() { failure } else { None };
        loop {
            let before = ready.len();
            ready.extend(batches.iter_mut().filter_map(Iterator::next));
            if ready.len() == before {
                break;
            }
        }
        drop(ready);
        self.is_fetching.set(false);
        self.fetched.notify_waiters();
    }

    /// Asks the next LC, or if it does not help one behind it.
    async fn ask(&self, question: PolicyQuestion, count: u32) -> Result<Vec<Ready>, Error> {
        let local = self.reach.local();
        let (data_type, question) = (self.data_type, self.with_priority(question));
        let request = LccRequest::NewDevices { data_type, question, count };
        let (reply, place) = self.ask_any(&request).await?;
        match reply {
            LccReply::Layouts(layouts) if !layouts.is_empty() => {
                let good = layouts.into_iter().filter(|layout| layout.check().is_ok());
                Ok(good.map(|layout| Ready { layout, place, local }).collect())
            }
            _ => Err(none()),
        }
    }

    /// What a new object would get by policy. Source: G-5.
    pub async fn choose(&self, question: PolicyQuestion) -> Result<Chosen, Error> {
        let (data_type, question) = (self.data_type, self.with_priority(question));
        match self.ask_any(&LccRequest::Choose { data_type, question }).await?.0 {
            LccReply::Chosen(chosen) => Ok(*chosen),
            _ => Err(none()),
        }
    }

    /// When a writer of a file with that path is answered; asked for only where a policy says
    /// anything about it.
    pub async fn ack(&self, path: Option<String>) -> AckMode {
        let map = self.reach.map().await;
        let says = |policy: &Policy| policy.ack.is_some_and(|ack| ack != AckMode::Cluster);
        if !map.is_ok_and(|map| map.policies.iter().any(says)) {
            return AckMode::Cluster;
        }
        let question = PolicyQuestion { path, ..PolicyQuestion::default() };
        // Where nobody answers, the write has the same trouble.
        self.choose(question).await.map_or(AckMode::Cluster, |chosen| chosen.ack)
    }

    fn with_priority(&self, question: PolicyQuestion) -> PolicyQuestion {
        PolicyQuestion { priority: question.priority.or(self.priority), ..question }
    }

    async fn ask_any(&self, request: &LccRequest) -> Result<(LccReply, Place), Error> {
        let mut failure = none();
        let map = self.reach.known_map();
        let others = self.reach.places().len();
        let others = (0..others).map_while(|_| self.next_place(map.as_deref()));
        for place in self.reach.local().into_iter().chain(others) {
            match self.reach.ask_at(place, request).await {
                Ok(reply) => return Ok((reply, place)),
                Err(error) => failure = error,
            }
        }
        Err(failure)
    }

    fn next_place(&self, map: Option<&ClusterMap>) -> Option<Place> {
        let mut places = self.reach.good_places();
        // Some LCCs are for other data. Source: O-7.
        if let Some(map) = map.filter(|map| map.policies.iter().any(|of| of.lccs.is_some())) {
            let count = |address| {
                let mut servers = map.servers.values();
                let server = servers.find(|server| server.lc_address == address);
                server.and_then(|server| u8::try_from(server.lccs.len()).ok()).unwrap_or(1)
            };
            places.retain(|(address, index)| {
                lccs_for(map, count(*address), self.data_type).contains(index)
            });
        }
        places.sort_unstable();
        let turn = self.turn.replace(self.turn.get().wrapping_add(1));
        (!places.is_empty()).then(|| places[turn % places.len()])
    }
}

fn none() -> Error {
    Error::Unavailable {
        path: "new files".into(),
        reason: "no local controller gives device numbers".into(),
    }
}
