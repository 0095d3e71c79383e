//! The stream processor: queue → filter command → queue, exactly once.
//!
//! ```text
//! place     a field or a JSON value of a body      key, time   what --key and --time make of it
//! state     what a filter keeps from run to run: private copies, named by commits
//! window    which messages belong together, and when no more of them will come: pure
//! ```

pub mod key;
pub mod place;
pub mod state;
pub mod time;
pub mod window;
