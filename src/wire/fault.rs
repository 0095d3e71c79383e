//! Why a server refused something, and its last words: the bodies of ERROR and GOODBYE, which are
//! frozen for all versions but for fields that are added.

use serde::{Deserialize, Serialize};

use crate::url::Url;

/// Why something was refused, for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorCode {
    /// The two sides speak different versions.
    Version,
    /// A frame that breaks the protocol; the connection ends.
    Protocol,
    /// Not allowed for this user.
    Access,
    /// A request that makes no sense.
    Usage,
    /// The input cannot be stored as it is.
    BadInput,
    /// The disk or a bound is full; later it may work.
    Full,
    /// The server has too many of something; later it may work.
    Busy,
    /// There is no such queue or group.
    NotFound,
    /// The queue exists with other settings.
    Different,
    /// The queue was removed, or removed and made anew.
    Gone,
    /// Another instance has taken over this producer.
    Fenced,
    /// What is stored is damaged.
    Corrupt,
    /// The disk failed.
    Disk,
    /// The server is stopping.
    Stopping,
    /// The queue lives at an engine elsewhere: [`Fault::url`] says where.
    Elsewhere,
    /// The engine at which the queue lives cannot be reached; later it may work.
    Unreachable,
    /// A code from a newer version.
    #[serde(other)]
    Unknown,
}

/// The body of an ERROR frame.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// What kind of fault.
    pub code: ErrorCode,
    /// What was being done, on what, and why it failed.
    pub message: String,
    /// What to do next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
    /// With [`ErrorCode::Elsewhere`]: where the queue lives. Clients of this version go there by
    /// themselves; older ones print the message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<Url>,
}

impl Fault {
    /// A fault without a remedy.
    #[must_use]
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Fault {
        Fault { code, message: message.into(), remedy: None, url: None }
    }
}

/// The body of a GOODBYE frame.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Goodbye {
    /// Why, for people.
    pub reason: String,
    /// Whether someone asked for it: then connected clients do not start a new server.
    pub orderly: bool,
}
