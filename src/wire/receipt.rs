//! The receipt of a lease: what a receiver hands on, so that the message can be settled later, by
//! another process.

use std::fmt;
use std::str::FromStr;

use crate::units::{LeaseNumber, Name, Offset};

/// Names one delivery of one message.
///
/// ```text
/// QUEUE/GROUP/INCARNATION/OFFSET/NUMBER
/// ```
///
/// Incarnation (the first 32 bits of the queue's id) and number are hexadecimal. The number is
/// drawn by the server and secret enough that it is not met by chance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// The queue.
    pub queue: Name,
    /// The group that it was delivered to.
    pub group: Name,
    /// The first 32 bits of the queue's id.
    pub incarnation: u32,
    /// The message.
    pub offset: Offset,
    /// The delivery.
    pub number: LeaseNumber,
}

impl fmt::Display for Receipt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Receipt { queue, group, incarnation, offset, number } = self;
        write!(f, "{queue}/{group}/{incarnation:08x}/{offset}/{:016x}", number.0)
    }
}

impl FromStr for Receipt {
    type Err = String;

    fn from_str(text: &str) -> Result<Receipt, String> {
        let bad = || {
            format!("{text:?} is no receipt; it is what `mq-recv --lease DUR -J` prints as receipt")
        };
        let parts: Vec<&str> = text.split('/').collect();
        let [queue, group, incarnation, offset, number] = parts[..] else { return Err(bad()) };
        let hex = |text: &str| text.bytes().all(|byte| byte.is_ascii_hexdigit());
        if !hex(incarnation) || !hex(number) || !offset.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(bad());
        }
        Ok(Receipt {
            queue: Name::new(queue).map_err(|_| bad())?,
            group: Name::new(group).map_err(|_| bad())?,
            incarnation: u32::from_str_radix(incarnation, 16).map_err(|_| bad())?,
            offset: Offset(offset.parse().map_err(|_| bad())?),
            number: LeaseNumber(u64::from_str_radix(number, 16).map_err(|_| bad())?),
        })
    }
}

impl serde::Serialize for Receipt {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Receipt {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Receipt, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn receipts_round_trip_and_nothing_else_reads_as_one() {
        let text = "jobs/default/0000abcd/42/9f86d081884c7d65";
        assert_eq!(text.parse::<Receipt>().map(|receipt| receipt.to_string()), Ok(text.to_owned()));
        for bad in ["", "jobs", "jobs/g/x/1/2", "jobs/g/1/+1/2", ".x/g/1/1/2", "a/b/c/d/e/f"] {
            assert!(bad.parse::<Receipt>().is_err(), "{bad}");
        }
    }
}
