//! What is asked for and the engine, or mq with any engine, cannot do: refused with a sentence that names
//! the engine and what to use instead. Pure.

use crate::remote::engine::{Abilities, Ability};
use crate::remote::failure::Failure;
use crate::remote::message::Outgoing;
use crate::units::Name;
use crate::wire::{CANNOT_ACK, OpenReceive, OpenSend, ReceiveMode};

/// Refuses `flag` when the ability is not there.
fn need(abilities: &Abilities, flag: &str, ability: Ability) -> Result<(), Failure> {
    match ability {
        Ability::Yes | Ability::Partly(_) => Ok(()),
        Ability::No(why) => Err(never(abilities, flag, why)),
    }
}

fn never(abilities: &Abilities, flag: &str, why: &str) -> Failure {
    Failure::unsupported(format!("{flag} with {}: {why}", abilities.name))
}

/// What a sender asks for.
///
/// # Errors
/// What of it cannot be done.
pub fn check_send(abilities: &Abilities, open: &OpenSend) -> Result<(), Failure> {
    if open.unless_pending {
        let why = "only a store of mq knows which keys are pending; send to a queue of the store, and \
                   forward from there with `mq-recv -J --batch 1000 QUEUE -- mq-send -J URL`";
        return Err(never(abilities, "--unless-pending", why));
    }
    if open.named {
        need(abilities, "--producer", abilities.producers)?;
    }
    Ok(())
}

/// What the messages of a sender ask for.
///
/// # Errors
/// What of it cannot be done.
pub fn check_messages(abilities: &Abilities, messages: &[Outgoing]) -> Result<(), Failure> {
    for facts in messages.iter().filter_map(|message| message.facts.as_deref()) {
        let asked = [
            (facts.key.is_some(), "-k", abilities.keys),
            (!facts.headers.is_empty(), "-H", abilities.headers),
            (facts.id.is_some(), "--id", abilities.ids),
            (facts.expires.is_some(), "--ttl", abilities.ttl),
            (facts.not_before.is_some(), "--delay", abilities.delay),
        ];
        for (is_asked, flag, ability) in asked {
            if is_asked {
                need(abilities, flag, ability)?;
            }
        }
    }
    Ok(())
}

/// What a receiver asks for.
///
/// # Errors
/// What of it cannot be done.
pub fn check_receive(abilities: &Abilities, open: &OpenReceive) -> Result<(), Failure> {
    if !open.patterns.is_empty() {
        let why = "one queue is received from; use a receiver for each";
        return Err(never(abilities, "several queues", why));
    }
    if open.lease.is_some() {
        let why = "a lease that outlives its receiver needs a store; use a command behind --, whose \
                   message is held until it is done";
        return Err(never(abilities, "--lease", why));
    }
    if open.exclusive {
        let why = "turns are taken in a store of mq only; run one receiver";
        return Err(never(abilities, "--exclusive", why));
    }
    if open.mode == ReceiveMode::Peek {
        need(abilities, "--peek", abilities.peek)?;
    } else if open.until_end {
        need(abilities, "-e", abilities.end)?;
    }
    if open.group != Name::default() {
        need(abilities, "-g", abilities.groups)?;
    }
    if open.from.is_some() {
        need(abilities, "--from", abilities.from)?;
    }
    Ok(())
}

/// The flags that an engine cannot do anything for, as the handshake says.
#[must_use]
pub fn cannot(abilities: &Abilities) -> Vec<String> {
    let flags = [
        ("key", abilities.keys),
        ("header", abilities.headers),
        ("id", abilities.ids),
        ("ttl", abilities.ttl),
        ("delay", abilities.delay),
        ("producer", abilities.producers),
        ("group", abilities.groups),
        ("from", abilities.from),
        ("end", abilities.end),
        ("peek", abilities.peek),
        (CANNOT_ACK, abilities.acks),
    ];
    let missing = flags.iter().filter(|(_, ability)| matches!(ability, Ability::No(_)));
    let always = ["unless-pending", "lease", "exclusive", "strict"];
    missing.map(|(flag, _)| *flag).chain(always).map(str::to_owned).collect()
}

/// Takes away from messages of our own, dead letters, what the engine has no place for: better without
/// than not at all.
pub fn without_what_is_missing(abilities: &Abilities, messages: &mut [Outgoing]) {
    let has = |ability| !matches!(ability, Ability::No(_));
    for message in messages {
        let Some(facts) = &mut message.facts else { continue };
        facts.key.take_if(|_| !has(abilities.keys));
        facts.id.take_if(|_| !has(abilities.ids));
        if !has(abilities.headers) {
            facts.headers.clear();
        }
        if facts.is_empty() {
            message.facts = None;
        }
    }
}
