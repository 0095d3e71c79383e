//! `mq-admin ack`, `nack`, `extend`: settles messages that another process has leased, by their
//! receipts.

use std::io::{BufRead, BufReader};

use clap::Args;
use mq::cli::{self, Failure, Outcome, Status};
use mq::client::inherited::stdin_was_open;
use mq::client::{Connection, admin};
use mq::limits;
use mq::units::Micros;
use mq::wire::{Admin, Fault, Receipt, Settlement};

use crate::{Flags, TOOL, reach};

/// Bytes of a line that can hold a receipt: two names, and numbers.
const LINE_BYTES_MAX: usize = 2 * limits::NAME_BYTES_MAX + 128;

/// The receipts that a verb is given.
#[derive(Debug, Args)]
pub struct Receipts {
    /// What mq-recv --lease DUR -J has printed as receipt; - reads them from
    /// stdin, one a line
    #[arg(value_name = "RECEIPT", required = true)]
    receipts: Vec<String>,
}

/// Reads the length of a lease, for clap.
pub fn lease(text: &str) -> Result<Micros, String> {
    let lease = cli::duration(text)?;
    if (limits::LEASE_MIN..=limits::LEASE_MAX).contains(&lease) {
        Ok(lease)
    } else {
        Err("a lease lasts from 10ms to 30d".to_owned())
    }
}

impl Receipts {
    /// Settles them. Each is tried; those that are refused are told one by one.
    pub fn settle(self, how: Settlement, flags: &Flags) -> Outcome {
        let mut receipts = Vec::new();
        let mut reads_stdin = false;
        for text in &self.receipts {
            match text.as_str() {
                "-" => reads_stdin = true,
                text => receipts.push(read(text, Status::Usage)?),
            }
        }
        if reads_stdin && !stdin_was_open() {
            return Err(Failure::new(Status::Failure, "cannot read stdin: it is closed"));
        }
        let connection = reach(flags, doing(how))?;
        let mut settler = Settler { connection, how, flags, tried: 0, refused: 0 };
        settler.settle(receipts)?;
        if reads_stdin {
            settler.settle_stdin()?;
        }
        settler.end()
    }
}

fn doing(how: Settlement) -> &'static str {
    match how {
        Settlement::Ack => "acknowledging by receipt",
        Settlement::Nack => "giving back by receipt",
        Settlement::Extend(_) => "extending leases by receipt",
    }
}

fn read(text: &str, status: Status) -> Result<Receipt, Failure> {
    text.parse().map_err(|error| Failure::new(status, error))
}

struct Settler<'a> {
    connection: Connection,
    how: Settlement,
    flags: &'a Flags,
    tried: u64,
    refused: u64,
}

impl Settler<'_> {
    /// What one read returned is settled together, so that a single line does not wait for others.
    fn settle_stdin(&mut self) -> Result<(), Failure> {
        let mut stdin = BufReader::new(std::io::stdin().lock());
        let mut receipts = Vec::new();
        let mut line = Vec::new();
        loop {
            line.clear();
            let read_bytes = std::io::Read::take(&mut stdin, LINE_BYTES_MAX as u64 + 1)
                .read_until(b'\n', &mut line)
                .map_err(|error| {
                    Failure::new(Status::Failure, format!("cannot read stdin: {error}"))
                })?;
            let text = String::from_utf8_lossy(&line);
            if read_bytes > LINE_BYTES_MAX {
                self.settle(receipts)?;
                let start: String = text.chars().take(60).collect();
                let text = format!("{start:?}... is no receipt: it is too long");
                return Err(Failure::new(Status::BadInput, text));
            }
            if !text.trim().is_empty() {
                match read(text.trim(), Status::BadInput) {
                    Ok(receipt) => receipts.push(receipt),
                    Err(failure) => {
                        self.settle(receipts)?;
                        return Err(failure);
                    }
                }
            }
            let is_all_read = memchr::memchr(b'\n', stdin.buffer()).is_none();
            if is_all_read || receipts.len() == limits::RECEIPTS_PER_REQUEST_MAX {
                self.settle(std::mem::take(&mut receipts))?;
            }
            if read_bytes == 0 {
                return Ok(());
            }
        }
    }

    fn settle(&mut self, receipts: Vec<Receipt>) -> Result<(), Failure> {
        let mut rest = receipts.as_slice();
        while !rest.is_empty() {
            let (now, later) = rest.split_at(rest.len().min(limits::RECEIPTS_PER_REQUEST_MAX));
            let request = Admin::Settle { receipts: now.to_vec(), how: self.how };
            let said: Vec<Option<Fault>> =
                admin::call(&mut self.connection, request, self.flags.patience())
                    .map_err(|error| Failure::from(error).while_doing(doing(self.how)))?;
            if said.len() != now.len() {
                let text = "the server's answer makes no sense: it is about other receipts";
                return Err(Failure::new(Status::Failure, text));
            }
            for (receipt, fault) in now.iter().zip(said) {
                self.tell(receipt, fault)?;
            }
            rest = later;
        }
        Ok(())
    }

    fn tell(&mut self, receipt: &Receipt, fault: Option<Fault>) -> Result<(), Failure> {
        self.tried += 1;
        self.refused += u64::from(fault.is_some());
        if self.flags.json {
            let done = fault.is_none();
            let mut line = serde_json::json!({ "receipt": receipt, "settled": done });
            if let Some(fault) = &fault {
                line["error"] = serde_json::json!(fault);
            }
            cli::print_json(&line)?;
        }
        if let Some(fault) = fault {
            let shown = receipt.to_string();
            let text = match fault.message.contains(&shown) {
                true => fault.message,
                false => format!("{shown}: {}", fault.message),
            };
            Failure::new(Status::Failure, text).tell(TOOL);
        }
        Ok(())
    }

    fn end(self) -> Outcome {
        let Settler { tried, refused, flags, .. } = self;
        if refused > 0 {
            let text = format!("{refused} of {tried} receipts were refused");
            return Err(Failure::new(Status::Failure, text));
        }
        if flags.shared.verbose {
            crate::say(flags, &format!("{tried} receipts were taken"));
        }
        Ok(Status::Done)
    }
}
