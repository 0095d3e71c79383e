//! What librdkafka says when something fails, in words for users.
//!
//! librdkafka tells much of it beside the calls, to a context that every client of it has: a refused
//! password, brokers that went away. The context here keeps the last word of that kind, for whoever
//! finds that nothing comes.

use std::sync::{Arc, Mutex};

use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use tokio::sync::watch;

use crate::remote::failure::{Failure, Kind};
use crate::remote::place::Place;

/// Where a connection goes and as whom: what its failures name.
#[derive(Clone, Debug)]
pub(super) struct Says {
    pub(super) place: Place,
    pub(super) user: Option<String>,
}

/// Hears what a client of librdkafka tells beside its calls.
#[derive(Clone)]
pub(super) struct Ears {
    says: Says,
    last: Arc<Mutex<Option<Failure>>>,
    /// What makes the client useless.
    lost: Arc<watch::Sender<Option<Failure>>>,
}

impl Ears {
    pub(super) fn new(says: Says) -> Ears {
        let lost = Arc::new(watch::channel(None).0);
        Ears { says, last: Arc::default(), lost }
    }

    /// What was told last, if anything explains why nothing goes.
    pub(super) fn told(&self) -> Option<Failure> {
        self.last.lock().expect("not poisoned").clone()
    }

    /// Tells when the client is of no use any more.
    pub(super) fn lost(&self) -> watch::Receiver<Option<Failure>> {
        self.lost.subscribe()
    }
}

impl ClientContext for Ears {
    fn log(&self, _level: RDKafkaLogLevel, _facility: &str, _message: &str) {
        // What matters of it comes as an error, too.
    }

    fn error(&self, error: KafkaError, reason: &str) {
        let Some(code) = error.rdkafka_error_code() else { return };
        let failure = match code {
            RDKafkaErrorCode::Authentication | RDKafkaErrorCode::SaslAuthenticationFailed => {
                self.says.place.denied(self.says.user.as_deref(), reason)
            }
            RDKafkaErrorCode::AllBrokersDown => self.says.place.lost("no broker answers any more"),
            RDKafkaErrorCode::Fatal => self.says.place.lost(reason),
            _ => return,
        };
        *self.last.lock().expect("not poisoned") = Some(failure.clone());
        self.lost.send_replace(Some(failure));
    }
}

impl Says {
    /// Why a call failed.
    pub(super) fn failed(&self, doing: &str, error: &KafkaError) -> Failure {
        let of_admin = match error {
            KafkaError::AdminOp(code) => Some(*code),
            _ => None,
        };
        match error.rdkafka_error_code().or(of_admin) {
            Some(code) => self.refused(doing, code),
            None => self.place.other(doing, error),
        }
    }

    /// The same from the code alone.
    pub(super) fn refused(&self, doing: &str, code: RDKafkaErrorCode) -> Failure {
        use RDKafkaErrorCode as Code;
        let kind = match code {
            Code::Fenced | Code::ProducerFenced | Code::InvalidProducerEpoch => {
                let why = "a newer sender of the same name is there";
                let message = format!("cannot {doing} with {}: {why}", self.place);
                return Failure::new(Kind::Fenced, message);
            }
            Code::TopicAuthorizationFailed
            | Code::GroupAuthorizationFailed
            | Code::ClusterAuthorizationFailed
            | Code::TransactionalIdAuthorizationFailed
            | Code::SaslAuthenticationFailed
            | Code::Authentication => Kind::Denied,
            Code::UnknownTopic
            | Code::UnknownTopicOrPartition
            | Code::UnknownPartition
            | Code::UnknownGroup => Kind::Missing,
            Code::MessageSizeTooLarge | Code::InvalidMessageSize | Code::MessageBatchTooLarge => {
                Kind::BadInput
            }
            Code::NotEnoughReplicas
            | Code::NotEnoughReplicasAfterAppend
            | Code::LeaderNotAvailable
            | Code::NotLeaderForPartition
            | Code::CoordinatorLoadInProgress
            | Code::CoordinatorNotAvailable
            | Code::NotCoordinator
            | Code::QueueFull
            | Code::ThrottlingQuotaExceeded
            | Code::RebalanceInProgress => Kind::Busy,
            Code::UnsupportedFeature | Code::UnsupportedVersion | Code::InvalidTopic => {
                Kind::Unsupported
            }
            Code::BrokerTransportFailure
            | Code::AllBrokersDown
            | Code::MessageTimedOut
            | Code::OperationTimedOut
            | Code::RequestTimedOut
            | Code::TimedOutQueue
            | Code::NetworkException
            | Code::PurgeQueue
            | Code::PurgeInflight
            | Code::Fatal
            | Code::UnknownMemberId
            | Code::IllegalGeneration => Kind::Unreachable,
            _ => Kind::Other,
        };
        let failure = Failure::new(kind, format!("cannot {doing} with {}: {code}", self.place));
        match code {
            Code::InvalidTopic => failure.with_remedy(
                "a topic's name is of at most 249 letters, digits, dots, underscores and hyphens",
            ),
            _ => failure,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn says() -> Says {
        Says { place: Place::new("Kafka", "b1:9092"), user: None }
    }

    #[test]
    fn what_an_administrator_is_told_is_told_apart_as_all_else() {
        let late = KafkaError::AdminOp(RDKafkaErrorCode::OperationTimedOut);
        let failure = says().failed("make topic x", &late);
        assert_eq!(failure.kind, Kind::Unreachable, "{failure}");
        let refused = KafkaError::AdminOp(RDKafkaErrorCode::TopicAuthorizationFailed);
        assert_eq!(says().failed("make topic x", &refused).kind, Kind::Denied);
    }

    #[test]
    fn a_name_that_no_topic_has_is_refused_in_words() {
        let failure = says().refused("ask about topic a b", RDKafkaErrorCode::InvalidTopic);
        assert_eq!(failure.kind, Kind::Unsupported);
        assert!(failure.remedy.expect("a remedy").contains("249 letters"));
    }

    #[test]
    fn a_newer_sender_is_told_as_such() {
        for code in [RDKafkaErrorCode::Fenced, RDKafkaErrorCode::ProducerFenced] {
            let failure = says().refused("send to topic x", code);
            assert!(failure.kind == Kind::Fenced && !failure.passes(), "{failure}");
            assert!(failure.message.ends_with("a newer sender of the same name is there"));
        }
    }
}
