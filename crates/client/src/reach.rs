//! Finds the owner of a group, asks it, and asks again elsewhere when it is gone.
//!
//! # Theory
//! Each group has one owner; who that is, is remembered from its last answer. Any LCC may be asked:
//! one that is not the owner names it or becomes it. Where this process has an LCC of its own, it is
//! asked first, without a connection.
//! ```text
//! answer                         next
//! reply, refusal                 done; the owner is remembered
//! NotOwner, with an owner        ask it
//! NotOwner, nobody known         ask again soon
//! OutcomeUnknown                 ask again soon
//! Unavailable                    ask again soon; after some time somebody else
//! connection refused, broken     ask somebody else
//! ```
//! # Failure
//! At the deadline the last reason is told. Whether a change was done is then not known; it carries
//! an operation id, so that sending it again does it once (L2 of `wire::lcc`).

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use braid_env::{Address, Env, Payload};
use braid_local_controller::files::{Asker, Caller, Files, Losses};
use braid_terms::{ClusterId, ClusterMap, DeviceId, LccId, ServerId, WriteNumber};
use braid_wire::coordinator::{CoordinatorReply, CoordinatorRequest};
use braid_wire::coordinator_client::CoordinatorClient;
use braid_wire::lcc::{
    Answer, DirectoryOp, FileOp, Lcc, LccRefusal, LccReply, LccRequest, OperationId,
};
use braid_wire::rpc::{self, CallError, Hello, Peer, Role};
use bytes::Bytes;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep, timeout};

use crate::change::{Change, Changes, is_change};
use crate::told::Told;
use crate::{ClusterFile, Error};

/// An LCC by its address.
pub type Place = (SocketAddr, u8);

/// Connections to all LCs, and who owns what.
pub struct Reach {
    pub env: Env,
    cluster: ClusterId,
    random: u64,
    counter: Cell<u64>,
    deadline: Duration,
    coordinators: CoordinatorClient,
    /// Addresses of LCs, and how many LCCs each has.
    servers: RefCell<BTreeMap<ServerId, (SocketAddr, u8)>>,
    links: RefCell<BTreeMap<Place, Rc<Link>>>,
    owners: RefCell<BTreeMap<DeviceId, Place>>,
    /// The LCC of this process.
    local: RefCell<Option<Local>>,
    map: RefCell<Option<(Instant, Rc<ClusterMap>)>>,
    is_asking_map: Cell<bool>,
    told: Told,
    changes: Rc<Changes>,
    /// Of the LCC of this process. Source: W-9.
    losses: Losses,
}

/// The way to one LCC.
#[derive(Default)]
struct Link {
    client: RefCell<Option<rpc::Client<Lcc>>>,
    connecting: Mutex<()>,
    /// It could not be reached then; it is asked last for a while.
    failed: Cell<Option<Instant>>,
}

/// An LCC in this process.
#[derive(Clone)]
pub struct Local {
    /// Where others reach it.
    pub place: Place,
    /// Its server's number.
    pub server: ServerId,
    /// It itself.
    pub files: Rc<Files>,
}

/// What an answer was.
#[derive(Clone, Copy, Debug)]
pub struct Answered {
    /// Who gave it.
    pub place: Place,
    /// It may be kept. Source: N-1.
    pub is_granted: bool,
}

/// What one attempt gave.
enum Attempt {
    Done(Box<Answer>, Bytes),
    Refused(LccRefusal),
    /// Never sent: the LCC could not be reached.
    Unreached(String),
    /// Sent, and no answer came.
    Unanswered(String),
}

impl Attempt {
    /// Whether what was asked for may have been done, or may still be.
    fn may_be_done(&self) -> bool {
        match self {
            Self::Unanswered(_)
            | Self::Refused(LccRefusal::OutcomeUnknown | LccRefusal::Unavailable { .. }) => true,
            Self::Done(..) | Self::Refused(_) | Self::Unreached(_) => false,
        }
    }
}

/// How something is asked for.
#[derive(Clone, Copy, Default)]
pub struct How<'a> {
    /// The LCC of this process may answer before it is decided. Source: W-9.
    pub is_ahead: bool,
    /// The change of a device that it is.
    pub change: Option<&'a Change>,
}

impl Reach {
    pub fn new(env: Env, file: &ClusterFile, deadline: Duration) -> Self {
        let random = env.random();
        let peer = Peer::Client { random, server: None };
        let addresses = file.servers.iter().map(|server| server.coordinator).collect();
        let coordinators = CoordinatorClient::new(env.clone(), file.cluster, peer, addresses);
        Self {
            env,
            cluster: file.cluster,
            random,
            counter: Cell::new(0),
            deadline,
            coordinators,
            servers: RefCell::new(file.servers.iter().map(|s| (s.id, (s.lc, 1))).collect()),
            links: RefCell::default(),
            owners: RefCell::default(),
            local: RefCell::new(None),
            map: RefCell::new(None),
            is_asking_map: Cell::new(false),
            told: Told::default(),
            changes: Rc::default(),
            losses: Losses::default(),
        }
    }

    /// The identity of a next change.
    pub fn operation(&self) -> OperationId {
        self.counter.set(self.counter.get() + 1);
        OperationId { client: self.random, counter: self.counter.get() }
    }

    /// The identity of a change of a device, for as long as it may be sent; none of what changes nothing.
    pub fn change(&self, device: DeviceId, op: &FileOp) -> Option<Change> {
        is_change(op).then(|| self.changes.begin(device, self.operation()))
    }

    pub fn coordinators(&self) -> &CoordinatorClient {
        &self.coordinators
    }

    pub fn cluster(&self) -> ClusterId {
        self.cluster
    }

    /// From now on this LCC is asked without a connection, and first.
    pub fn set_local(&self, local: Option<Local>) {
        if let Some(local) = &local {
            local.files.set_losses(self.losses.clone());
        }
        let before = self.local.replace(local);
        // Owners are told anew who asks.
        self.links.borrow_mut().clear();
        if let Some(before) = before {
            self.owners.borrow_mut().retain(|_, place| *place != before.place);
        }
    }

    /// The LCC of this process, where it has one that holds a lease; one that is cut off from the
    /// global controller can own nothing new.
    pub fn local(&self) -> Option<Place> {
        let local = self.local.borrow();
        local.as_ref().filter(|local| local.files.lcc().lease_valid()).map(|local| local.place)
    }

    /// The map, at most some seconds old.
    pub async fn map(&self) -> Result<Rc<ClusterMap>, Error> {
        let known = self.map.borrow().clone();
        match known {
            Some((when, map)) if when.elapsed() < MAP_AGE_MAX => Ok(map),
            _ => self.fresh_map(self.deadline).await,
        }
    }

    /// The map as it was heard last; where that is long ago it is asked for, for the next time.
    pub fn known_map(self: &Rc<Self>) -> Option<Rc<ClusterMap>> {
        let (when, map) = self.map.borrow().clone()?;
        if MAP_AGE_MAX <= when.elapsed() && !self.is_asking_map.replace(true) {
            let reach = self.clone();
            tokio::task::spawn_local(async move {
                // Asked again next time.
                let _ = reach.fresh_map(reach.deadline).await;
                reach.is_asking_map.set(false);
            });
        }
        Some(map)
    }

    /// The map as it is now.
    pub async fn fresh_map(&self, deadline: Duration) -> Result<Rc<ClusterMap>, Error> {
        let request = CoordinatorRequest::Map { linearizable: false };
        let unavailable =
            |reason| Error::Unavailable { path: "the map of the cluster".into(), reason };
        match self.coordinators.call(&request, deadline).await {
            Ok(CoordinatorReply::Map(map)) => Ok(self.learn(*map)),
            Ok(_) => Err(unavailable("a coordinator answers something else".into())),
            Err(error) => Err(unavailable(error.to_string())),
        }
    }

    fn learn(&self, map: ClusterMap) -> Rc<ClusterMap> {
        self.coordinators.learn(&map);
        let count = |lccs: usize| u8::try_from(lccs).unwrap_or(u8::MAX).max(1);
        let servers: BTreeMap<_, _> = map
            .servers
            .values()
            // What a mount owns it is asked for, but nothing else.
            .filter(|server| !server.is_mount)
            .map(|server| (server.id, (server.lc_address, count(server.lccs.len()))))
            .collect();
        if !servers.is_empty() {
            *self.servers.borrow_mut() = servers;
        }
        let map = Rc::new(map);
        *self.map.borrow_mut() = Some((Instant::now(), map.clone()));
        map
    }

    /// LCCs of all servers, those that could not be reached lately last.
    pub fn places(&self) -> Vec<Place> {
        let servers = self.servers.borrow();
        let all = servers
            .values()
            .flat_map(|(address, count)| (0..*count).map(|index| (*address, index)));
        let places: Vec<Place> = all.collect();
        let links = self.links.borrow();
        let (good, bad): (Vec<_>, Vec<_>) = places
            .into_iter()
            .partition(|place| links.get(place).is_none_or(|link| !link.failed_lately()));
        good.into_iter().chain(bad).collect()
    }

    /// LCs that were not found to be away lately; all, where all were.
    pub fn good_places(&self) -> Vec<Place> {
        let all = self.places();
        let good: Vec<_> = all.iter().filter(|place| !self.failed_lately(place)).copied().collect();
        if good.is_empty() { all } else { good }
    }

    /// This LCC is known to own a group.
    pub fn learn_owner(&self, group: DeviceId, place: Place) {
        let mut owners = self.owners.borrow_mut();
        if OWNERS_MAX <= owners.len() {
            // Any may go: it is asked for again.
            owners.pop_first();
        }
        owners.insert(group, place);
    }

    /// Asks the owner of a group; retries until the deadline.
    ///
    /// Errors: the owner's refusal, or that there was no answer; `path` says what it was about.
    pub async fn ask(
        &self,
        request: &LccRequest,
        payload: Payload,
    ) -> Result<(LccReply, Bytes), Error> {
        self.ask_noting(request, payload, How::default(), &mut None).await
    }

    /// As `ask`; says also whose answer it was, or whose refusal.
    pub async fn ask_noting(
        &self,
        request: &LccRequest,
        payload: Payload,
        how: How<'_>,
        answered: &mut Option<Answered>,
    ) -> Result<(LccReply, Bytes), Error> {
        let group = match request {
            LccRequest::Directory { layout, .. }
            | LccRequest::File { layout, .. }
            | LccRequest::DescribeGroup { layout }
            | LccRequest::Repair { layout }
            | LccRequest::Verify { layout, .. } => layout.group(),
            LccRequest::NewDevices { .. }
            | LccRequest::Choose { .. }
            | LccRequest::Shadow { .. }
            | LccRequest::Status
            | LccRequest::Watch { .. }
            | LccRequest::KeepCaches { .. } => {
                unreachable!("not about a group: see ask_at")
            }
        };
        let what = || format!("device {group}");
        let How { is_ahead, change } = how;
        let named = if is_sync(request) { self.told.written(group) } else { Vec::new() };
        let mut request = naming(request, &named);
        let end = Instant::now() + self.deadline;
        let mut search = Search { attempts: 0, reason: "no server is known".into(), avoid: None };
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let Some(place) = self.choose(group, &search).filter(|_| !left.is_zero()) else {
                return Err(Error::Unavailable { path: what(), reason: search.reason });
            };
            search.attempts += 1;
            if let Some(change) = change
                && let LccRequest::File { change: sent, .. } = request.to_mut()
            {
                *sent = Some(change.to_send());
            }
            let how = (is_ahead, left);
            let attempt = self.attempt(place, &request, payload.clone(), how).await;
            if let Some(change) = change.filter(|_| attempt.may_be_done()) {
                change.is_unsure();
            }
            let pause = match attempt {
                Attempt::Done(answer, bytes) => {
                    self.learn_owner(group, place);
                    if let Some(number) = answer.written {
                        self.told.note(group, number);
                    }
                    self.told.synced(group, &named);
                    if is_stable(&request) && self.losses.take(group) {
                        self.told.lost(group, &[]);
                        return Err(Error::HeldLost { path: what() });
                    }
                    let (is_granted, reply) = said(answer.reply);
                    if let Ok(reply) = &reply {
                        self.changes.learn_from(group, reply);
                    }
                    *answered = Some(Answered { place, is_granted });
                    let reply = reply.map_err(|refusal| Error::refused(refusal, what()))?;
                    return Ok((reply, bytes));
                }
                Attempt::Refused(LccRefusal::HeldLost) => {
                    // Told by this, too.
                    self.losses.take(group);
                    self.told.lost(group, &named);
                    return Err(Error::HeldLost { path: what() });
                }
                Attempt::Refused(LccRefusal::NotOwner { owner }) => {
                    search.reason = "its owner is changing".into();
                    self.follow(group, place, owner, &search)
                }
                Attempt::Refused(LccRefusal::OutcomeUnknown) => {
                    search.reason = "its owner is changing".into();
                    self.follow(group, place, None, &search)
                }
                Attempt::Refused(LccRefusal::Unavailable { reason }) => {
                    search.reason = reason;
                    // The owner may be cut off from the others; then somebody else can be it.
                    if search.attempts.is_multiple_of(4) {
                        self.forget_owner(group, &mut search, place);
                    }
                    search.pause()
                }
                Attempt::Refused(refusal) => {
                    self.learn_owner(group, place);
                    return Err(Error::refused(refusal, what()));
                }
                Attempt::Unreached(reason) => {
                    search.reason = reason;
                    self.forget_owner(group, &mut search, place);
                    search.pause()
                }
                Attempt::Unanswered(reason) => {
                    search.reason = reason;
                    self.forget_owner(group, &mut search, place);
                    search.pause()
                }
            };
            sleep(pause.min(end.saturating_duration_since(Instant::now()))).await;
        }
    }

    /// How often changes of a group that this process was told of were found lost. Source: W-9.
    pub fn losses(&self, group: DeviceId) -> u64 {
        self.told.losses(group)
    }

    /// Asks one LCC, whatever it is about.
    pub async fn ask_at(&self, place: Place, request: &LccRequest) -> Result<LccReply, Error> {
        let what = format!("the server at {}", place.0);
        let how = (false, self.deadline.min(ASK_AT_MAX));
        match self.attempt(place, request, Payload::empty(), how).await {
            Attempt::Done(answer, _) => {
                said(answer.reply).1.map_err(|refusal| Error::refused(refusal, what))
            }
            Attempt::Refused(refusal) => Err(Error::refused(refusal, what)),
            Attempt::Unreached(reason) | Attempt::Unanswered(reason) => {
                Err(Error::Unavailable { path: what, reason })
            }
        }
    }

    fn choose(&self, group: DeviceId, search: &Search) -> Option<Place> {
        if let Some(owner) = self.owners.borrow().get(&group) {
            return Some(*owner);
        }
        if let Some(local) = self.local().filter(|local| Some(*local) != search.avoid) {
            return Some(local);
        }
        let mut places = self.good_places();
        if places.len() > 1 {
            places.retain(|place| Some(*place) != search.avoid);
        }
        // Clients that look for the same group begin at the same LCC.
        let start = group.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        let count = u64::try_from(places.len()).unwrap_or(1).max(1);
        let nth = usize::try_from((start + search.attempts) % count).unwrap_or(0);
        places.get(nth).copied()
    }

    /// Somebody else owns the group; how long to wait before asking.
    fn follow(
        &self,
        group: DeviceId,
        asked: Place,
        owner: Option<(LccId, SocketAddr)>,
        search: &Search,
    ) -> Duration {
        let owner =
            owner.map(|(lcc, address)| (address, lcc.index)).filter(|owner| *owner != asked);
        match owner {
            Some(owner) => {
                // An owner that is gone is named until it is out of its lease: the next one that is
                // asked may be granted the group by then.
                if self.failed_lately(&owner) {
                    self.owners.borrow_mut().remove(&group);
                    return search.pause();
                }
                self.learn_owner(group, owner);
                // Two that name each other soon know better.
                if search.attempts <= HINTS_AT_ONCE { Duration::ZERO } else { search.pause() }
            }
            None => {
                self.owners.borrow_mut().remove(&group);
                search.pause()
            }
        }
    }

    fn forget_owner(&self, group: DeviceId, search: &mut Search, place: Place) {
        self.owners.borrow_mut().remove(&group);
        search.avoid = Some(place);
    }

    fn failed_lately(&self, place: &Place) -> bool {
        self.links.borrow().get(place).is_some_and(|link| link.failed_lately())
    }

    async fn attempt(
        &self,
        place: Place,
        request: &LccRequest,
        payload: Payload,
        (is_ahead, left): (bool, Duration),
    ) -> Attempt {
        let local = self.local.borrow().clone().filter(|local| local.place == place);
        if let Some(local) = local {
            let asker = Asker { caller: Caller::Here, session: self.random, is_ahead };
            return ask_local(&local.files, asker, request, payload, left).await;
        }
        let client = match timeout(left.min(CONNECT_MAX), self.client(place)).await {
            Ok(Ok(client)) => client,
            Ok(Err(reason)) => return Attempt::Unreached(reason),
            Err(_) => {
                self.link(place).failed.set(Some(Instant::now()));
                return Attempt::Unreached(format!("{} is silent", place.0));
            }
        };
        match client.call(request, payload, left).await {
            Ok((Ok(answer), bytes)) => Attempt::Done(Box::new(answer), bytes),
            Ok((Err(refusal), _)) => Attempt::Refused(refusal),
            Err(CallError::TooLarge) => Attempt::Refused(LccRefusal::TooBig),
            Err(error) => {
                if error == CallError::Closed {
                    self.link(place).failed.set(Some(Instant::now()));
                }
                Attempt::Unanswered(format!("{}: {error}", place.0))
            }
        }
    }

    fn link(&self, place: Place) -> Rc<Link> {
        self.links.borrow_mut().entry(place).or_default().clone()
    }

    /// The connection to an LCC.
    ///
    /// Errors: why there is none.
    pub async fn client(&self, place: Place) -> Result<rpc::Client<Lcc>, String> {
        let link = self.link(place);
        let up = || link.client.borrow().clone().filter(|client| !client.is_closed());
        if let Some(client) = up() {
            return Ok(client);
        }
        let _alone = link.connecting.lock().await;
        if let Some(client) = up() {
            return Ok(client);
        }
        let server = self.local.borrow().as_ref().map(|local| local.server);
        let peer = Peer::Client { random: self.random, server };
        let hello = Hello::new(self.cluster, Role::Lcc, place.1, peer);
        let options = rpc::ClientOptions {
            ping_after: PING_AFTER,
            broken_after: BROKEN_AFTER,
            ..rpc::ClientOptions::default()
        };
        let to = Address::Tcp(place.0);
        match rpc::Client::connect_with(&self.env, to, hello, options).await {
            Ok(client) => {
                link.failed.set(None);
                *link.client.borrow_mut() = Some(client.clone());
                Ok(client)
            }
            Err(error) => {
                link.failed.set(Some(Instant::now()));
                Err(format!("{}: {error}", place.0))
            }
        }
    }
}

/// What an answer says, and whether it may be kept. Source: N-1.
fn said(reply: LccReply) -> (bool, Result<LccReply, LccRefusal>) {
    match reply {
        LccReply::Granted(answer) => (true, *answer),
        reply => (false, Ok(reply)),
    }
}

fn is_sync(request: &LccRequest) -> bool {
    matches!(
        request,
        LccRequest::Directory { op: DirectoryOp::Sync { .. }, .. }
            | LccRequest::File { op: FileOp::Sync { .. }, .. }
    )
}

/// Whether it says that all before it is on the disks: it tells what is lost.
fn is_stable(request: &LccRequest) -> bool {
    let attributes = matches!(
        request,
        LccRequest::Directory { op: DirectoryOp::SetAttributes { stable: true, .. }, .. }
    );
    attributes || is_sync(request)
}

/// A request, and if it is a sync, with what this process was told is written.
fn naming<'a>(request: &'a LccRequest, named: &[WriteNumber]) -> Cow<'a, LccRequest> {
    let mut request = Cow::Borrowed(request);
    if !named.is_empty()
        && let LccRequest::Directory { op: DirectoryOp::Sync { written }, .. }
        | LccRequest::File { op: FileOp::Sync { written }, .. } = request.to_mut()
    {
        *written = named.to_vec();
    }
    request
}

async fn ask_local(
    files: &Rc<Files>,
    asker: Asker,
    request: &LccRequest,
    payload: Payload,
    left: Duration,
) -> Attempt {
    let answer = Box::pin(files.answer(asker, request.clone(), payload.into_bytes()));
    match timeout(left, answer).await {
        Ok(Ok((answer, payload))) => Attempt::Done(Box::new(answer), payload.into_bytes()),
        Ok(Err(refusal)) => Attempt::Refused(refusal),
        Err(_) => Attempt::Unanswered("this machine's local controller is silent".into()),
    }
}

impl Link {
    fn failed_lately(&self) -> bool {
        self.failed.get().is_some_and(|when| when.elapsed() < FAILED_AGE_MAX)
    }
}

/// State of one search for an owner.
struct Search {
    attempts: u64,
    /// What the last attempt said.
    reason: String,
    /// Who was asked last and did not help.
    avoid: Option<Place>,
}

impl Search {
    /// Short at first, then longer.
    fn pause(&self) -> Duration {
        PAUSE_MIN * u32::try_from(self.attempts.min(10)).unwrap_or(10)
    }
}

/// Owners that are asked at once, one after the other, as they name each other.
const HINTS_AT_ONCE: u64 = 4;
const PAUSE_MIN: Duration = Duration::from_millis(20);
const CONNECT_MAX: Duration = Duration::from_millis(1000);
const PING_AFTER: Duration = Duration::from_millis(500);
/// An owner that stands still is out of its lease soon after; others are asked from then on.
const BROKEN_AFTER: Duration = Duration::from_millis(1700);
const FAILED_AGE_MAX: Duration = Duration::from_secs(1);
const MAP_AGE_MAX: Duration = Duration::from_secs(10);
const ASK_AT_MAX: Duration = Duration::from_secs(10);
const OWNERS_MAX: usize = 100_000;
