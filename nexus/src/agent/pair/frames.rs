//! The frames that come by a pair channel, and which call gets them.

use super::call::{Over, PairCall, keep};
use super::{Broken, PARKED, Pair, Parked};
use crate::wire::control::{CallId, Role};
use crate::wire::pair::{EARLY, HEADER, Header, Kind, MAX_CREDIT, Reset};
use std::rc::Rc;
use std::task::Context;
use std::time::Instant;
use vchan::{Channel, ReadChunk};

/// How many bytes, headers among them, are read before others have their turn.
const TURN: usize = 2 << 20;

/// A frame of data whose bytes are still coming.
#[derive(Debug, Clone, Copy)]
pub(super) struct Current {
    call: CallId,
    kind: Kind,
    left: usize,
}

/// What reading came to.
pub(super) enum Read {
    /// Nothing more is there now.
    All,
    /// It was better left where it is.
    Held,
    /// More is there.
    Enough,
    /// The peer has closed the channel.
    Ended,
}

impl Pair {
    /// Reads what is there.
    pub(super) fn read(&self, channel: &mut Channel, context: &mut Context<'_>) -> Result<Read, Broken> {
        let mut budget = TURN;
        while budget > 0 {
            if self.holds(context) {
                return Ok(Read::Held);
            }
            let used = match self.current.get() {
                Some(current) => self.continue_data(channel, current),
                None => self.begin(channel),
            };
            match used {
                Ok(0) => return Ok(Read::Ended),
                Ok(used) => budget = budget.saturating_sub(used),
                Err(Broken::Channel(vchan::Error::WouldBlock)) => return Ok(Read::All),
                Err(broken) => return Err(broken),
            }
        }
        Ok(Read::Enough)
    }

    /// A frame, or the beginning of one of data. How many bytes were read; 0 at the end.
    fn begin(&self, channel: &mut Channel) -> Result<usize, Broken> {
        let chunk = channel.peek(HEADER)?;
        if chunk.len() < HEADER {
            return Ok(0);
        }
        let mut bytes = [0; HEADER];
        chunk.copy_to(0, &mut bytes);
        let header = Header::parse(&bytes)?;
        self.check_part(header.kind)?;
        if !header.kind.is_data() {
            let chunk = channel.peek(HEADER + 4)?;
            if chunk.len() < HEADER + 4 {
                return Ok(0);
            }
            let mut number = [0; 4];
            chunk.copy_to(HEADER, &mut number);
            chunk.consume(HEADER + 4);
            self.number(header, u32::from_le_bytes(number))?;
            return Ok(HEADER + 4);
        }
        // Of a call that is over frames may be on their way.
        let call = self.calls.borrow().get(&header.call).cloned();
        let length = header.length as usize;
        let there = (chunk.len() - HEADER).min(length);
        match call {
            Some(call) => call.begin_data(header.kind, header.length, &chunk)?,
            None => self.begin_early(header, there, &chunk)?,
        }
        chunk.consume(HEADER + there);
        if there < length {
            self.current.set(Some(Current { call: header.call, kind: header.kind, left: length - there }));
        }
        Ok(HEADER + there)
    }

    fn continue_data(&self, channel: &mut Channel, current: Current) -> Result<usize, Broken> {
        let chunk = channel.peek(1)?;
        let there = chunk.len().min(current.left);
        let call = self.calls.borrow().get(&current.call).cloned();
        match call {
            Some(call) => call.more_data(current.kind, 0, there, &chunk),
            None => self.more_early(current.call, 0, there, &chunk),
        }
        chunk.consume(there);
        let left = current.left - there;
        self.current.set((left > 0).then_some(Current { left, ..current }));
        Ok(there)
    }

    /// Data of a call that is parked is kept with it. Of one that is not known it is nobody's: it ended just now.
    fn begin_early(&self, header: Header, there: usize, chunk: &ReadChunk<'_>) -> Result<(), Broken> {
        if let Some(parked) = self.parked.borrow_mut().get_mut(&header.call) {
            let length = header.length as usize;
            if parked.early.len() + length > EARLY as usize {
                return Err(Broken::Overrun(header.call));
            }
            parked.ended |= length == 0;
            parked.to_come = length;
        }
        self.more_early(header.call, HEADER, there, chunk);
        Ok(())
    }

    fn more_early(&self, call: CallId, skip: usize, bytes: usize, chunk: &ReadChunk<'_>) {
        if let Some(parked) = self.parked.borrow_mut().get_mut(&call) {
            keep(&mut parked.early, chunk, skip, bytes);
            parked.to_come -= bytes;
        }
    }

    /// Whether it is the peer's to send this.
    fn check_part(&self, kind: Kind) -> Result<(), Broken> {
        let of_caller = matches!(kind, Kind::Open | Kind::Stdin);
        let of_target = matches!(kind, Kind::Stdout | Kind::Stderr | Kind::Exit);
        let wrong = match self.role {
            Role::Caller => of_caller,
            Role::Service => of_target,
        };
        if wrong { Err(Broken::Part(kind)) } else { Ok(()) }
    }

    fn number(&self, header: Header, number: u32) -> Result<(), Broken> {
        let call = self.calls.borrow().get(&header.call).cloned();
        match (header.kind, call) {
            (Kind::Open, call) => self.opened(header.call, call, number),
            (Kind::Credit, Some(call)) => call.more_credit(number),
            (Kind::Exit, Some(call)) => {
                call.exit(number.cast_signed());
                Ok(())
            }
            (Kind::Reset, Some(call)) => {
                self.forget(header.call);
                call.over(Over::Reset(Reset::of(number)));
                Ok(())
            }
            (Kind::Reset, None) => {
                self.parked.borrow_mut().remove(&header.call);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn opened(&self, id: CallId, call: Option<Rc<PairCall>>, credit: u32) -> Result<(), Broken> {
        if credit > MAX_CREDIT {
            return Err(Broken::Credit(id));
        }
        match call {
            Some(call) => call.opened(credit),
            None => {
                let mut parked = self.parked.borrow_mut();
                if parked.contains_key(&id) {
                    return Err(Broken::Twice(id));
                }
                if parked.len() >= PARKED {
                    self.owe(id, Reset::Unknown);
                } else {
                    let since = Instant::now();
                    parked.insert(id, Parked { credit, since, early: Vec::new(), to_come: 0, ended: false });
                }
                Ok(())
            }
        }
    }
}
