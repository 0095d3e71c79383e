//! All ways to answer a row of questions, each with so many answers; or, where those are too many,
//! the extreme ones and some by chance.

use crate::sim::disk::Random;

pub struct Choices {
    /// How many answers each question has.
    arities: Vec<u64>,
    next: Option<Vec<u64>>,
    left: u64,
    random: Option<Random>,
}

impl Choices {
    /// At most so many of the ways to answer `arities`.
    pub fn new(arities: Vec<u64>, bound: u64) -> Choices {
        let all = arities.iter().try_fold(1u64, |all, n| all.checked_mul(*n));
        let random = all.is_none_or(|all| all > bound).then_some(Random(arities.len() as u64));
        Choices { next: Some(vec![0; arities.len()]), arities, left: bound, random }
    }

    /// The answers behind these, as one counts.
    fn count_up(&self, mut answers: Vec<u64>) -> Option<Vec<u64>> {
        for (answer, arity) in answers.iter_mut().zip(&self.arities) {
            *answer += 1;
            if *answer < *arity {
                return Some(answers);
            }
            *answer = 0;
        }
        None
    }

    /// The last of all answers, then any.
    fn jump(&mut self, first: bool) -> Option<Vec<u64>> {
        let random = self.random.as_mut().expect("they are too many");
        Some(self.arities.iter().map(|n| if first { n - 1 } else { random.below(*n) }).collect())
    }
}

impl Iterator for Choices {
    type Item = Vec<u64>;

    fn next(&mut self) -> Option<Vec<u64>> {
        if self.left == 0 {
            return None;
        }
        self.left -= 1;
        let answers = self.next.take()?;
        self.next = match self.random {
            None => self.count_up(answers.clone()),
            Some(_) => {
                let is_first = answers.iter().all(|answer| *answer == 0);
                self.jump(is_first)
            }
        };
        Some(answers)
    }
}

#[test]
fn few_are_all_and_many_are_bounded() {
    let all: std::collections::BTreeSet<Vec<u64>> = Choices::new(vec![2, 3, 1], 100).collect();
    assert_eq!(all.len(), 6);
    let some: Vec<Vec<u64>> = Choices::new(vec![4; 20], 50).collect();
    assert_eq!(some.len(), 50);
    assert_eq!((&some[0], &some[1]), (&vec![0; 20], &vec![3; 20]));
    assert_eq!(Choices::new(Vec::new(), 10).count(), 1);
}
