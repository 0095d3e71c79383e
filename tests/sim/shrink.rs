//! Cutting a failing history down to the steps that matter.

use crate::plan::Plan;

/// The shortest plan found, within `tries`, for which `fails` still says yes: ever smaller pieces
/// are left out, for as long as that gets anywhere.
pub fn shrink(plan: &Plan, mut tries: usize, fails: &mut dyn FnMut(&Plan) -> bool) -> Plan {
    let mut best = plan.clone();
    let mut piece = best.steps.len().div_ceil(2).max(1);
    loop {
        let mut at = 0;
        let before = best.steps.len();
        while at < best.steps.len() {
            if tries == 0 {
                return best;
            }
            tries -= 1;
            let mut shorter = best.clone();
            shorter.steps.drain(at..(at + piece).min(best.steps.len()));
            if fails(&shorter) {
                best = shorter;
            } else {
                at += piece;
            }
        }
        if piece > 1 {
            piece = piece.div_ceil(2);
        } else if best.steps.len() == before {
            return best;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Kind;

    /// What stays of a failure that needs three steps far apart is those three.
    #[test]
    fn only_the_steps_that_a_failure_needs_are_left() {
        let plan = Plan::whole(Kind::Wide, 1);
        let needed = [3, 150, 288];
        let mut runs = 0;
        let short = shrink(&plan, 2_000, &mut |plan| {
            runs += 1;
            needed.iter().all(|step| plan.steps.contains(step))
        });
        assert_eq!(short.steps, needed);
        assert!(runs < 200, "{runs} runs");
    }

    #[test]
    fn a_failure_that_needs_no_step_is_left_with_none() {
        let plan = Plan::whole(Kind::Pipe, 1);
        assert!(shrink(&plan, 2_000, &mut |_| true).steps.is_empty());
    }
}
