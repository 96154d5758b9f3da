//! Handles on their way to another process.
//!
//! A handle serialises only while something packs it for another process; then it becomes a *ticket*: a place in the family segment, or
//! the number of a descriptor that travels beside the message and an offset. What packs and unpacks puts a context on this thread's
//! stack, and takes it off however it ends.

use std::cell::RefCell;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::de::{DeserializeOwned, Error as _};
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::{Error, ErrorKind, Result};
use crate::segment::Attachment;
use crate::segment::family::{self, Hold, Place};
use crate::segment::layout::Shape;
use crate::segment::named::Segment;
use crate::segment::object::{Object, Whereabouts};

/// What a handle is in a message.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
enum Ticket {
    Family(Place),
    Segment { index: u32, offset: u64 },
}

/// What travels before a message's own bytes.
#[derive(Serialize, Deserialize)]
struct Manifest {
    /// The names of the segments whose descriptors travel beside the message, in their order.
    segments: Vec<Option<String>>,
    /// The objects of the family that the message counts for while it is in flight.
    posted: Vec<Place>,
}

/// A message for another process, and what must stay until it has arrived.
pub(crate) struct Parcel {
    body: Vec<u8>,
    outgoing: Outgoing,
}

#[derive(Default)]
struct Outgoing {
    segments: Vec<Arc<Attachment>>,
    objects: Vec<Object>,
}

/// A message that has arrived. What it carries stays while this does, so that it can be unpacked more than once.
pub(crate) struct Delivery {
    body: Vec<u8>,
    incoming: Arc<Mutex<Incoming>>,
    _holds: Vec<Hold>,
}

struct Incoming {
    segments: Vec<Arrived>,
}

/// A segment whose descriptor arrived, and which is attached when the first handle asks for it.
struct Arrived {
    name: Option<String>,
    descriptor: Option<OwnedFd>,
    attachment: Option<Arc<Attachment>>,
}

enum Context {
    Packing(Outgoing),
    Unpacking {
        incoming: Arc<Mutex<Incoming>>,
        /// Why a handle could not be unpacked: the wire format's own errors carry no text.
        failure: Option<Error>,
    },
}

thread_local! {
    static CONTEXTS: RefCell<Vec<Context>> = const { RefCell::new(Vec::new()) };
}

/// Takes this thread's topmost context off when dropped: also when a value's own `Serialize` panics.
struct Entered;

impl Entered {
    fn push(context: Context) -> Entered {
        CONTEXTS.with_borrow_mut(|contexts| contexts.push(context));
        Entered
    }

    fn pop(self) -> Option<Context> {
        std::mem::forget(self);
        CONTEXTS.with_borrow_mut(Vec::pop)
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        let context = CONTEXTS.with_borrow_mut(Vec::pop);
        drop(context);
    }
}

impl Parcel {
    /// Encodes a value; the handles in it become tickets.
    pub(crate) fn pack<T: Serialize + ?Sized>(value: &T) -> Result<Parcel> {
        let entered = Entered::push(Context::Packing(Outgoing::default()));
        let encoded = postcard::to_stdvec(value);
        let context = entered.pop();
        let body = encoded
            .map_err(|error| Error::new(ErrorKind::Encode, format!("it cannot be encoded: {error}")))?;
        match context {
            Some(Context::Packing(outgoing)) => Ok(Parcel { body, outgoing }),
            _ => {
                Err(Error::new(ErrorKind::Encode, "it cannot be encoded: its serialisation disturbs others'"))
            }
        }
    }

    /// The bytes that must reach the receiver, whose sender keeps everything in them.
    pub(crate) fn message(&self) -> Result<Vec<u8>> {
        self.message_with(Vec::new())
    }

    /// The descriptors that must reach the receiver beside the message, in this order.
    pub(crate) fn descriptors(&self) -> Result<Vec<OwnedFd>> {
        self.outgoing.segments.iter().map(|segment| segment.descriptor()).collect()
    }

    /// The bytes of a message that outlives its sender: from now on it counts for the objects in it. It must be received once.
    pub(crate) fn post(&self) -> Result<Vec<u8>> {
        let holds = self.outgoing.objects.iter().filter_map(|object| match object.whereabouts() {
            Whereabouts::Family(hold) => Some(hold),
            Whereabouts::Segment(..) => None,
        });
        let posted = holds.clone().map(Hold::place).collect();
        let message = self.message_with(posted)?;
        holds.for_each(family::post);
        Ok(message)
    }

    fn message_with(&self, posted: Vec<Place>) -> Result<Vec<u8>> {
        let segments =
            self.outgoing.segments.iter().map(|segment| segment.name().map(str::to_owned)).collect();
        let manifest = postcard::to_stdvec(&Manifest { segments, posted })
            .map_err(|error| Error::new(ErrorKind::Encode, format!("it cannot be encoded: {error}")))?;
        let mut message = (manifest.len() as u64).to_le_bytes().to_vec();
        message.extend_from_slice(&manifest);
        message.extend_from_slice(&self.body);
        Ok(message)
    }
}

impl Delivery {
    /// A message whose sender keeps everything in it until it is unpacked.
    pub(crate) fn lent(message: &[u8], descriptors: Vec<OwnedFd>) -> Result<Delivery> {
        let (manifest, body) = parse(message)?;
        Delivery::of(manifest, body, descriptors, Vec::new())
    }

    /// A message that was [posted](Parcel::post).
    pub(crate) fn posted(message: &[u8], descriptors: Vec<OwnedFd>) -> Result<Delivery> {
        let (manifest, body) = parse(message)?;
        // Held by us before the message stops counting for them.
        let holds: Result<Vec<Hold>> = manifest
            .posted
            .iter()
            .map(|&place| {
                // What cannot be held leaks: a damaged message must not uncount another's object.
                let hold = family::hold(place)?;
                family::unpost(&hold);
                Ok(hold)
            })
            .collect();
        Delivery::of(manifest, body, descriptors, holds?)
    }

    fn of(manifest: Manifest, body: &[u8], descriptors: Vec<OwnedFd>, holds: Vec<Hold>) -> Result<Delivery> {
        if manifest.segments.len() != descriptors.len() {
            return Err(Error::new(
                ErrorKind::Decode,
                format!(
                    "{} descriptors arrived, the message needs {}",
                    descriptors.len(),
                    manifest.segments.len()
                ),
            ));
        }
        let segments = manifest
            .segments
            .into_iter()
            .zip(descriptors)
            .map(|(name, descriptor)| Arrived { name, descriptor: Some(descriptor), attachment: None })
            .collect();
        Ok(Delivery {
            body: body.to_vec(),
            incoming: Arc::new(Mutex::new(Incoming { segments })),
            _holds: holds,
        })
    }

    /// Decodes the value; the tickets in it become handles.
    pub(crate) fn unpack<T: DeserializeOwned>(&self) -> Result<T> {
        let undecodable = |why: String| Error::new(ErrorKind::Decode, format!("it cannot be decoded: {why}"));
        let incoming = Arc::clone(&self.incoming);
        let entered = Entered::push(Context::Unpacking { incoming, failure: None });
        let decoded = postcard::take_from_bytes::<T>(&self.body);
        let failure = match entered.pop() {
            Some(Context::Unpacking { failure, .. }) => failure,
            _ => None,
        };
        let (value, rest) =
            decoded.map_err(|error| failure.unwrap_or_else(|| undecodable(error.to_string())))?;
        if rest.is_empty() {
            Ok(value)
        } else {
            Err(undecodable(format!("{} bytes are left over", rest.len())))
        }
    }
}

fn parse(message: &[u8]) -> Result<(Manifest, &[u8])> {
    let damaged = || Error::new(ErrorKind::Decode, "the message is damaged");
    let (len, rest) = message.split_first_chunk::<8>().ok_or_else(damaged)?;
    let len = usize::try_from(u64::from_le_bytes(*len)).map_err(|_| damaged())?;
    let (manifest, body) = rest.split_at_checked(len).ok_or_else(damaged)?;
    Ok((postcard::from_bytes(manifest).map_err(|_| damaged())?, body))
}

const NOT_IN_TRANSFER: &str = "not inside a multiproc transfer: a handle can only be sent to another process, by spawning it or through a queue or pipe";

impl Outgoing {
    fn index_of(&mut self, attachment: &Arc<Attachment>) -> u32 {
        let known = self.segments.iter().position(|segment| Arc::ptr_eq(segment, attachment));
        let index = known.unwrap_or_else(|| {
            self.segments.push(Arc::clone(attachment));
            self.segments.len() - 1
        });
        // A message of four billion descriptors does not come to be.
        u32::try_from(index).unwrap_or(u32::MAX)
    }
}

impl Incoming {
    fn attachment(&mut self, index: u32) -> Result<Arc<Attachment>> {
        let arrived = usize::try_from(index)
            .ok()
            .and_then(|index| self.segments.get_mut(index))
            .ok_or_else(|| Error::new(ErrorKind::Decode, "it names a segment that did not arrive"))?;
        if let Some(attachment) = &arrived.attachment {
            return Ok(Arc::clone(attachment));
        }
        let descriptor = arrived
            .descriptor
            .take()
            .ok_or_else(|| Error::new(ErrorKind::Decode, "a segment that arrived could not be attached"))?;
        let attachment = Attachment::of_descriptor(File::from(descriptor), arrived.name.clone())?;
        arrived.attachment = Some(Arc::clone(&attachment));
        Ok(attachment)
    }
}

fn lock(incoming: &Mutex<Incoming>) -> MutexGuard<'_, Incoming> {
    incoming.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs `f` on this thread's packing context.
fn packing<R>(f: impl FnOnce(&mut Outgoing) -> R) -> Result<R, &'static str> {
    CONTEXTS.with_borrow_mut(|contexts| match contexts.last_mut() {
        Some(Context::Packing(outgoing)) => Ok(f(outgoing)),
        _ => Err(NOT_IN_TRANSFER),
    })
}

/// This thread's unpacking context.
fn unpacking() -> Result<Arc<Mutex<Incoming>>, &'static str> {
    CONTEXTS.with_borrow(|contexts| match contexts.last() {
        Some(Context::Unpacking { incoming, .. }) => Ok(Arc::clone(incoming)),
        _ => Err(NOT_IN_TRANSFER),
    })
}

/// Serialises the object of a handle as its ticket.
pub(crate) fn serialize<S: Serializer>(object: &Object, serializer: S) -> Result<S::Ok, S::Error> {
    let ticket = packing(|outgoing| {
        outgoing.objects.push(object.clone());
        match object.whereabouts() {
            Whereabouts::Family(hold) => Ticket::Family(hold.place()),
            Whereabouts::Segment(attachment, offset) => {
                Ticket::Segment { index: outgoing.index_of(attachment), offset: offset as u64 }
            }
        }
    });
    ticket.map_err(S::Error::custom)?.serialize(serializer)
}

/// Finds the object of a ticket, if it is what `expected` says.
pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
    deserializer: D,
    expected: &Shape,
) -> Result<Object, D::Error> {
    let incoming = unpacking().map_err(D::Error::custom)?;
    let ticket = Ticket::deserialize(deserializer)?;
    let found = find(&incoming, ticket, expected);
    found.map_err(fail)
}

fn find(incoming: &Mutex<Incoming>, ticket: Ticket, expected: &Shape) -> Result<Object> {
    match ticket {
        Ticket::Family(place) => Object::resolve(place, expected),
        Ticket::Segment { index, offset } => {
            let attachment = lock(incoming).attachment(index)?;
            let offset = usize::try_from(offset)
                .map_err(|_| Error::new(ErrorKind::Decode, "an offset is too large"))?;
            Object::open_at(&attachment, offset, expected)
        }
    }
}

/// Keeps the error for the end of the unpacking, and gives the wire format one of its own.
fn fail<E: serde::de::Error>(error: Error) -> E {
    let short = E::custom(&error);
    CONTEXTS.with_borrow_mut(|contexts| {
        if let Some(Context::Unpacking { failure, .. }) = contexts.last_mut() {
            *failure = Some(error);
        }
    });
    short
}

impl Serialize for Segment {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        packing(|outgoing| outgoing.index_of(&self.attachment))
            .map_err(S::Error::custom)?
            .serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Segment {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Segment, D::Error> {
        let incoming = unpacking().map_err(D::Error::custom)?;
        let index = u32::deserialize(deserializer)?;
        let attachment = lock(&incoming).attachment(index);
        let attachment = attachment.map_err(fail)?;
        Ok(Segment { attachment })
    }
}
