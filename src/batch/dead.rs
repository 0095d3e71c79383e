//! The names of the headers by which a dead letter says where it is from and why it is dead; mq(7)
//! explains them. Those who write letters, in a store or at an engine elsewhere, use the same.

use crate::units::WallTime;

/// What begins the names of all these headers.
pub const PREFIX: &str = "mq-dead-";
/// The queue that the message died in.
pub const QUEUE: &str = "mq-dead-queue";
/// The group that failed it.
pub const GROUP: &str = "mq-dead-group";
/// Its offset there.
pub const OFFSET: &str = "mq-dead-offset";
/// How often it was handed over.
pub const ATTEMPTS: &str = "mq-dead-attempts";
/// Why.
pub const REASON: &str = "mq-dead-reason";
/// When it failed first.
pub const FIRST: &str = "mq-dead-first";
/// When it failed last, or was found dead.
pub const TIME: &str = "mq-dead-time";
/// When it would have expired.
pub const EXPIRES: &str = "mq-dead-expires";
/// What its command said last on stderr.
pub const STDERR: &str = "mq-dead-stderr";

/// A time as it stands in these headers: RFC 3339, UTC. What lies behind the year 9999 is shown as its
/// end.
#[must_use]
pub fn time_text(time: WallTime) -> String {
    let micros = i64::try_from(time.0).unwrap_or(i64::MAX);
    let shown = jiff::Timestamp::from_microsecond(micros);
    format!("{:.6}", shown.unwrap_or(jiff::Timestamp::MAX))
}
