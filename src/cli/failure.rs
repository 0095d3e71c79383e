//! A failure as a user meets it: what was being done, on what, why it failed, what to do next.

use std::io::Write;

use super::Status;
use crate::client::ClientError;
use crate::store::StoreError;
use crate::wire::ErrorCode;

/// Why a tool ends early, with its exit status.
#[derive(Debug)]
pub struct Failure {
    /// How the process ends.
    pub status: Status,
    /// What failed and why; a sentence without a full stop. May have several lines. Empty when
    /// everything has been said already.
    pub message: String,
    /// What to do next, to stand behind "try:".
    pub remedy: Option<String>,
}

impl Failure {
    /// A failure with this status and text.
    pub fn new(status: Status, message: impl Into<String>) -> Failure {
        Failure { status, message: message.into(), remedy: None }
    }

    /// Adds what to do next.
    #[must_use]
    pub fn with_remedy(self, remedy: impl Into<String>) -> Failure {
        Failure { remedy: Some(remedy.into()), ..self }
    }

    /// Adds what was being done, in front.
    #[must_use]
    pub fn while_doing(self, doing: &str) -> Failure {
        Failure { message: format!("{doing}: {}", self.message), ..self }
    }

    /// Writes it to stderr. A stderr that is closed changes nothing.
    pub fn tell(&self, tool: &str) {
        if self.message.is_empty() {
            return;
        }
        let mut text = format!("{tool}: {}\n", self.message);
        if let Some(remedy) = &self.remedy {
            text.push_str(&format!("  try: {remedy}\n"));
        }
        // One write, so that lines of several tools do not mix.
        let _ = std::io::stderr().write_all(text.as_bytes());
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Failure {
        let remedy = error.remedy();
        Failure { status: Status::Failure, message: error.to_string(), remedy }
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Failure {
        let status = match &error {
            ClientError::NoServer { .. }
            | ClientError::Store(StoreError::Locked { .. })
            | ClientError::StartFailed { .. }
            | ClientError::NoProgram { .. }
            | ClientError::NoHelper { .. }
            | ClientError::HelperGone { .. }
            | ClientError::HelperSilent { .. }
            | ClientError::Silent { .. }
            | ClientError::Dying { .. }
            | ClientError::Lost => Status::NoServer,
            ClientError::Name(..) => Status::Usage,
            ClientError::Refused(fault) => of_code(fault.code),
            _ => Status::Failure,
        };
        let remedy = error.remedy();
        Failure { status, message: error.to_string(), remedy }
    }
}

fn of_code(code: ErrorCode) -> Status {
    match code {
        ErrorCode::Full | ErrorCode::Busy => Status::TryAgain,
        ErrorCode::BadInput => Status::BadInput,
        ErrorCode::Usage => Status::Usage,
        ErrorCode::Stopping | ErrorCode::Unreachable => Status::NoServer,
        _ => Status::Failure,
    }
}
