//! `queue.json`: what a queue is. A person can read it.
//!
//! # Layout
//!
//! Two lines. The first is a JSON object with `format`, `id`, `created` (microseconds since the
//! epoch) and the settings; the second is `crc32 ` and the CRC-32 of the first line without its
//! newline, as eight hexadecimal digits. The file is only ever replaced whole.
//!
//! # Changing the format
//!
//! Fields are added freely; those that this program does not know are kept. A field that an old
//! program must not ignore raises [`FORMAT_VERSION`].
//!
//! Called by the log and by recovery; knows nothing of other files.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::error::LogError;
use super::segment::FORMAT_VERSION;
use crate::batch::checksum;
use crate::settings::Settings;
use crate::units::{QueueId, WallTime};

/// What `queue.json` says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Meta {
    format: u32,
    pub id: QueueId,
    pub created: WallTime,
    #[serde(flatten)]
    pub settings: Settings,
    /// Fields of newer programs.
    #[serde(flatten)]
    other: serde_json::Map<String, serde_json::Value>,
}

impl Meta {
    pub fn new(id: QueueId, created: WallTime, settings: Settings) -> Meta {
        Meta { format: FORMAT_VERSION, id, created, settings, other: serde_json::Map::new() }
    }

    /// The same queue with other settings.
    pub fn with_settings(&self, settings: Settings) -> Meta {
        Meta { settings, ..self.clone() }
    }

    /// The file's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = serde_json::to_vec(self).expect("metadata has only string keys");
        let crc = checksum(&out);
        out.extend_from_slice(format!("\ncrc32 {crc:08x}\n").as_bytes());
        out
    }

    /// Reads the file's bytes.
    ///
    /// # Errors
    /// [`LogError::Metadata`], [`LogError::Newer`].
    pub fn decode(bytes: &[u8], path: &Path) -> Result<Meta, LogError> {
        let bad = |what: &str| LogError::Metadata { path: path.to_owned(), what: what.to_owned() };
        let end = memchr::memchr(b'\n', bytes).ok_or_else(|| bad("is cut short"))?;
        let (line, rest) = bytes.split_at(end);
        if rest != format!("\ncrc32 {:08x}\n", checksum(line)).as_bytes() {
            return Err(bad("fails its checksum"));
        }
        let value: serde_json::Value =
            serde_json::from_slice(line).map_err(|e| bad(&format!("cannot be read: {e}")))?;
        let format = value.get("format").and_then(serde_json::Value::as_u64);
        let format = format.ok_or_else(|| bad("names no format"))?;
        if format > u64::from(FORMAT_VERSION) {
            return Err(LogError::Newer {
                path: path.to_owned(),
                found: u32::try_from(format).unwrap_or(u32::MAX),
                known: FORMAT_VERSION,
            });
        }
        serde_json::from_value(value).map_err(|e| bad(&format!("cannot be read: {e}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meta() -> Meta {
        use crate::units::SyncPolicy;
        let id = QueueId::from_bytes(*b"0123456789abcdef");
        Meta::new(id, WallTime(5), Settings { sync: SyncPolicy::Never, ..Settings::default() })
    }

    #[test]
    fn metadata_round_trips_and_keeps_fields_of_newer_programs() {
        let path = Path::new("queue.json");
        assert_eq!(Meta::decode(&meta().encode(), path).unwrap(), meta());
        let mut newer = meta();
        newer.other.insert("colour".to_owned(), "blue".into());
        let read = Meta::decode(&newer.encode(), path).unwrap();
        assert_eq!(read, newer);
        assert!(String::from_utf8(read.encode()).unwrap().contains("blue"));
    }

    #[test]
    fn newer_formats_are_their_own_error() {
        let newer = Meta { format: FORMAT_VERSION + 1, ..meta() };
        let error = Meta::decode(&newer.encode(), Path::new("x")).unwrap_err();
        assert!(matches!(error, LogError::Newer { found: 3, known: 2, .. }), "{error}");
    }

    #[test]
    fn every_flipped_bit_of_the_metadata_is_found() {
        let bytes = meta().encode();
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(Meta::decode(&bad, Path::new("x")).is_err(), "bit {bit}");
        }
    }
}
