//! Schedules: who of the two calls what, in which order, drawn from a seed.
//!
//! What a call answers depends on the order of the calls alone: one is made after the other has been answered, or, if it is
//! known that it waits, before the calls that end the wait. So a schedule knows how many bytes are in each ring.

use super::difference::Difference;
use crate::peers::{CLIENT, PATH, SERVER};
use std::fmt;

/// Who is called.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Who {
    Server,
    Client,
    /// A program beside the client that looks at what the server shares.
    Observer,
}

impl Who {
    fn peer(self) -> Self {
        if self == Self::Server { Self::Client } else { Self::Server }
    }

    /// The ring that it receives from: 0 is the left one.
    fn receives(self) -> usize {
        usize::from(self != Self::Server)
    }

    fn sends(self) -> usize {
        self.peer().receives()
    }
}

/// A command of the scripted ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Call {
    Serve { left_min: usize, right_min: usize, persist: bool },
    Connect,
    Blocking(bool),
    Write(usize, u64),
    Send(usize, u64),
    Read(usize),
    Recv(usize),
    Ready,
    Space,
    Open,
    GiveBack,
    Wait,
    Close,
    Page,
    Rings,
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Serve { left_min, right_min, persist } => {
                let persist = if *persist { " persist" } else { "" };
                write!(f, "serve {CLIENT} {PATH} {left_min} {right_min}{persist}")
            }
            Self::Connect => write!(f, "connect {SERVER} /local/domain/{SERVER}/{PATH}"),
            Self::Blocking(on) => write!(f, "blocking {}", u8::from(*on)),
            Self::Write(n, seed) => write!(f, "write {n} {seed}"),
            Self::Send(n, seed) => write!(f, "send {n} {seed}"),
            Self::Read(n) => write!(f, "read {n}"),
            Self::Recv(n) => write!(f, "recv {n}"),
            Self::Ready => f.write_str("ready"),
            Self::Space => f.write_str("space"),
            Self::Open => f.write_str("open"),
            Self::GiveBack => f.write_str("give-back"),
            Self::Wait => f.write_str("wait"),
            Self::Close => f.write_str("close"),
            Self::Page => write!(f, "page {SERVER} /local/domain/{SERVER}/{PATH}"),
            Self::Rings => write!(f, "rings {SERVER} /local/domain/{SERVER}/{PATH}"),
        }
    }
}

/// What the test does next.
#[derive(Clone, Copy, Debug)]
pub(super) enum Step {
    /// Calls, and takes the answer.
    Do(Who, Call, Difference),
    /// Calls, and sees that there is no answer.
    Begin(Who, Call),
    /// Calls until the answer is this number.
    Until(Who, Call, usize),
    /// Takes the answer of what was begun.
    Finish(Who, Difference),
}

/// SplitMix64.
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// A number of a range.
    fn of(&mut self, range: std::ops::RangeInclusive<usize>) -> usize {
        range.start() + (self.next() % (range.end() - range.start() + 1) as u64) as usize
    }

    /// True in `n` of a hundred cases.
    fn percent(&mut self, n: usize) -> bool {
        self.of(0..=99) < n
    }
}

/// Minimums for which a server chooses these orders.
fn minimums(random: &mut Random, left: u16, right: u16) -> (usize, usize) {
    // A ring of order 11 beside one with pages of its own may be as small as one likes.
    let mut of_order = |order: u16| match order {
        11 => random.of(0..=2048),
        order => random.of((1 << (order - 1)) + 1..=1 << order),
    };
    match (left, right) {
        (10, 11) => (random.of(0..=1024), random.of(0..=2048)),
        (11, 10) => (random.of(1025..=2048), random.of(0..=1024)),
        (left, right) => (of_order(left), of_order(right)),
    }
}

/// A schedule in the making, and what is true after its steps.
pub(super) struct Schedule {
    random: Random,
    pub(super) steps: Vec<Step>,
    size: [usize; 2],
    used: [usize; 2],
    /// Server, client.
    blocking: [bool; 2],
    persist: bool,
    connected: bool,
}

impl Schedule {
    /// A channel from its beginning to its end, with so many calls in between.
    pub(super) fn new(seed: u64, orders: (u16, u16), calls: usize) -> Self {
        let mut random = Random(seed);
        let (left_min, right_min) = minimums(&mut random, orders.0, orders.1);
        let persist = random.percent(20);
        let mut schedule = Self {
            random,
            steps: Vec::new(),
            size: [1 << orders.0, 1 << orders.1],
            used: [0; 2],
            blocking: [false; 2],
            persist,
            connected: false,
        };
        schedule.same(Who::Server, Call::Serve { left_min, right_min, persist });
        schedule.set_blocking(Who::Server);
        // A server may be busy before its client comes.
        for _ in 0..schedule.random.of(0..=4) {
            schedule.traffic();
        }
        schedule.connect();
        while schedule.steps.len() < calls {
            if persist && schedule.random.percent(5) {
                schedule.same(Who::Client, Call::Close);
                schedule.connected = false;
                schedule.open(Who::Server);
                for _ in 0..schedule.random.of(0..=4) {
                    schedule.traffic();
                }
                schedule.connect();
            }
            schedule.traffic();
        }
        schedule.same_but(Who::Observer, Call::Page, Difference::NotifyBits);
        schedule.same(Who::Observer, Call::Rings);
        schedule.end();
        schedule
    }

    fn same(&mut self, who: Who, call: Call) {
        self.same_but(who, call, Difference::None);
    }

    fn same_but(&mut self, who: Who, call: Call, difference: Difference) {
        self.steps.push(Step::Do(who, call, difference));
    }

    fn blocks(&self, who: Who) -> bool {
        self.blocking[who.receives()]
    }

    fn set_blocking(&mut self, who: Who) {
        let on = self.random.percent(50);
        self.blocking[who.receives()] = on;
        self.same(who, Call::Blocking(on));
    }

    fn connect(&mut self) {
        self.same(Who::Client, Call::Connect);
        self.connected = true;
        if self.random.percent(50) {
            self.same(Who::Server, Call::Wait);
        }
        self.set_blocking(Who::Client);
    }

    fn room(&self, ring: usize) -> usize {
        self.size[ring] - self.used[ring]
    }

    /// A number of bytes: few, or about as many as something is large.
    fn amount(&mut self, ring: usize) -> usize {
        let (size, used) = (self.size[ring], self.used[ring]);
        match self.random.of(0..=19) {
            0 => 0,
            1 => size,
            2 => size + 1,
            3 => size - 1,
            4 => size / 4,
            5 => size / 4 + 1,
            6 => used + 1,
            7 => size - used + 1,
            8 => self.random.of(1..=2 * size),
            9..=13 => self.random.of(1..=64),
            _ => {
                let power = self.random.of(0..=size.ilog2() as usize);
                self.random.of(1..=1 << power)
            }
        }
    }

    fn seed(&mut self) -> u64 {
        self.random.next()
    }

    /// One call, or a few that belong together.
    fn traffic(&mut self) {
        let who = if !self.connected || self.random.percent(50) { Who::Server } else { Who::Client };
        match self.random.of(0..=99) {
            0..30 => self.write(who),
            30..42 => self.send(who),
            42..68 => self.read(who),
            68..80 => self.recv(who),
            80..86 => self.await_bytes(who),
            86..90 => self.await_room(who),
            90..93 => self.same(who, Call::Ready),
            93..97 => self.same(who, Call::Space),
            _ => self.open(who),
        }
    }

    fn open(&mut self, who: Who) {
        let absent = self.persist && who == Who::Server && !self.connected;
        let difference = if absent { Difference::PersistentServer } else { Difference::None };
        self.same_but(who, Call::Open, difference);
    }

    fn write(&mut self, who: Who) {
        let ring = who.sends();
        let (mut n, seed) = (self.amount(ring), self.seed());
        if self.blocks(who) && n > self.room(ring) {
            if self.connected && self.blocks(who.peer()) {
                return self.write_that_waits(who, n, seed);
            }
            n = self.room(ring);
        }
        self.same(who, Call::Write(n, seed));
        self.used[ring] += n.min(self.room(ring));
    }

    fn send(&mut self, who: Who) {
        let ring = who.sends();
        let (mut n, seed) = (self.amount(ring), self.seed());
        let room = self.room(ring);
        if self.blocks(who) && n > room && n <= self.size[ring] {
            if self.connected {
                return self.send_that_waits(who, n, seed);
            }
            n = room;
        }
        self.same_but(who, Call::Send(n, seed), self.too_large(n, ring));
        if n <= room {
            self.used[ring] += n;
        }
    }

    fn read(&mut self, who: Who) {
        let ring = who.receives();
        let n = self.amount(ring);
        let used = self.used[ring];
        if self.blocks(who) && used == 0 {
            if self.connected && n > 0 {
                self.read_that_waits(who, n);
            }
            return;
        }
        self.same(who, Call::Read(n));
        self.used[ring] -= n.min(used);
        self.give_back(who, true);
    }

    fn recv(&mut self, who: Who) {
        let ring = who.receives();
        let mut n = self.amount(ring);
        let used = self.used[ring];
        if self.blocks(who) && n > used && n <= self.size[ring] {
            if self.connected {
                return self.recv_that_waits(who, n);
            }
            n = used;
        }
        self.same_but(who, Call::Recv(n), self.too_large(n, ring));
        if n <= used {
            self.used[ring] -= n;
        }
        self.give_back(who, true);
    }

    fn too_large(&self, n: usize, ring: usize) -> Difference {
        if n > self.size[ring] { Difference::TooLarge } else { Difference::None }
    }

    /// After a blocking end has received: the room that it holds back, if it is ours, is looked at and given back.
    fn give_back(&mut self, who: Who, look: bool) {
        if self.blocks(who) {
            if look && self.connected && self.random.percent(30) {
                let quarter = self.size[who.receives()] / 4;
                self.same_but(who.peer(), Call::Space, Difference::RoomHeldBack { quarter });
            }
            self.same(who, Call::GiveBack);
        }
    }

    /// An end that does not block, and has found nothing, hears of the next bytes.
    fn await_bytes(&mut self, who: Who) {
        let ring = who.receives();
        if self.blocks(who) || !self.connected || self.used[ring] > 0 {
            return self.read(who);
        }
        let n = self.random.of(1..=self.size[ring]);
        let call = if self.random.percent(50) { Call::Read(n) } else { Call::Recv(n) };
        self.same(who, call);
        let (n, seed) = (self.random.of(1..=self.size[ring]), self.seed());
        self.same(who.peer(), Call::Write(n, seed));
        self.used[ring] += n;
        self.same(who, Call::Wait);
    }

    /// An end that does not block, and has found no room, hears of the next that there is.
    fn await_room(&mut self, who: Who) {
        let ring = who.sends();
        if self.blocks(who) || !self.connected {
            return self.write(who);
        }
        let (n, seed) = (self.room(ring) + 1, self.seed());
        if n <= self.size[ring] {
            self.same(who, Call::Send(n, seed));
        } else {
            self.same(who, Call::Write(n, seed));
            self.used[ring] = self.size[ring];
            self.same(who, Call::Write(1, seed));
        }
        if self.room(ring) == self.size[ring] {
            return;
        }
        let n = self.random.of(1..=self.used[ring]);
        self.same(who.peer(), Call::Read(n));
        self.used[ring] -= n;
        self.give_back(who.peer(), false);
        self.same(who, Call::Wait);
    }

    fn finish(&mut self, who: Who) {
        self.steps.push(Step::Finish(who, Difference::None));
    }

    /// All that is sent is a quarter of the ring at most, so both makes publish it at once, and it is read at once.
    fn read_that_waits(&mut self, who: Who, n: usize) {
        let ring = who.receives();
        self.steps.push(Step::Begin(who, Call::Read(n)));
        let (sent, seed) = (self.random.of(1..=self.size[ring] / 4), self.seed());
        self.same(who.peer(), Call::Write(sent, seed));
        self.finish(who);
        self.used[ring] = sent - n.min(sent);
        self.give_back(who, true);
    }

    fn recv_that_waits(&mut self, who: Who, n: usize) {
        let ring = who.receives();
        self.steps.push(Step::Begin(who, Call::Recv(n)));
        let used = self.used[ring];
        let mut left = self.random.of(n - used..=self.size[ring] - used);
        self.used[ring] += left;
        while left > 0 {
            let part = if self.random.percent(40) { left } else { self.random.of(1..=left) };
            let seed = self.seed();
            let call = if self.random.percent(50) { Call::Write(part, seed) } else { Call::Send(part, seed) };
            self.same(who.peer(), call);
            left -= part;
        }
        self.finish(who);
        self.used[ring] -= n;
        self.give_back(who, true);
    }

    fn write_that_waits(&mut self, who: Who, n: usize, seed: u64) {
        let ring = who.sends();
        self.steps.push(Step::Begin(who, Call::Write(n, seed)));
        let total = self.used[ring] + n;
        let taken = self.random.of(n - self.room(ring)..=total);
        self.take(who.peer(), taken);
        self.finish(who);
        self.used[ring] = total - taken;
    }

    fn send_that_waits(&mut self, who: Who, n: usize, seed: u64) {
        let ring = who.sends();
        self.steps.push(Step::Begin(who, Call::Send(n, seed)));
        let taken = self.random.of(n - self.room(ring)..=self.used[ring]);
        self.take(who.peer(), taken);
        self.finish(who);
        self.used[ring] += n;
        self.used[ring] -= taken;
    }

    /// Receives so many bytes, in parts of a known length each.
    fn take(&mut self, who: Who, mut left: usize) {
        let size = self.size[who.receives()];
        while left > 0 {
            let part = if self.random.percent(40) { left } else { self.random.of(1..=left) }.min(size);
            self.same(who, Call::Recv(part));
            left -= part;
        }
        // The sender may wait for the last of it.
        self.give_back(who, false);
    }

    /// One side closes, and the other one sees it.
    fn end(&mut self) {
        let first = if self.random.percent(50) { Who::Server } else { Who::Client };
        let last = first.peer();
        let (from, to) = (last.receives(), last.sends());
        if self.persist && last == Who::Server {
            self.same(first, Call::Close);
            return self.same(last, Call::Close);
        }
        let seed = self.seed();
        let waits = match self.random.of(0..=2) {
            0 if self.used[from] == 0 => Some(Call::Read(self.random.of(1..=100))),
            1 => Some(Call::Recv(self.used[from] + 1)).filter(|_| self.room(from) > 0),
            2 => Some(Call::Write(self.room(to) + self.random.of(1..=100), seed)),
            _ => None,
        };
        match waits.filter(|_| self.blocks(last)) {
            Some(call) => {
                self.steps.push(Step::Begin(last, call));
                if let Call::Write(..) = call {
                    // It must have begun: otherwise it puts nothing into the ring.
                    self.used[to] = self.size[to];
                    self.steps.push(Step::Until(first, Call::Ready, self.size[to]));
                }
                self.same(first, Call::Close);
                self.finish(last);
            }
            None => {
                self.same(first, Call::Close);
                self.same(last, Call::Wait);
            }
        }
        let mut written = false;
        for _ in 0..self.random.of(0..=12) {
            let seed = self.seed();
            match self.random.of(0..=7) {
                0 => {
                    let n = self.amount(to);
                    self.same(last, Call::Write(n, seed));
                    written |= n > 0;
                }
                1 => {
                    let n = self.amount(to);
                    self.same(last, Call::Send(n, seed));
                }
                2 | 3 => {
                    let n = if self.random.percent(20) { 0 } else { self.amount(from) };
                    let used = self.used[from];
                    let nothing = n == 0 && used == 0;
                    let difference = if nothing { Difference::NothingAtTheEnd } else { Difference::None };
                    self.same_but(last, Call::Read(n), difference);
                    self.used[from] -= n.min(used);
                }
                4 => {
                    let n = self.amount(from);
                    self.same_but(last, Call::Recv(n), self.too_large(n, from));
                    if n <= self.used[from] {
                        self.used[from] -= n;
                    }
                }
                5 => self.same(last, Call::Ready),
                6 => {
                    let difference = if written { Difference::RoomAtTheEnd } else { Difference::None };
                    self.same_but(last, Call::Space, difference);
                }
                _ => self.same(last, Call::Open),
            }
        }
        self.same(last, Call::Close);
    }
}
