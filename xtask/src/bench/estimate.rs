//! Medians, and how far they can be trusted.

/// A median, with the bounds between which it is with a probability of 95 %.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Estimate {
    pub(super) median: f64,
    pub(super) low: f64,
    pub(super) high: f64,
}

/// What an estimate says about a bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Yes,
    No,
    /// The median is on one side, and its bounds on both.
    Unclear,
}

impl Estimate {
    /// Of values that were measured independently; nothing of none. The bounds are two of the values, by their rank.
    pub(super) fn of(values: &[f64]) -> Option<Self> {
        let mut sorted = values.to_vec();
        sorted.sort_unstable_by(f64::total_cmp);
        let count = sorted.len();
        let below = ((count as f64 - 1.96 * (count as f64).sqrt()) / 2.0).floor().max(0.0) as usize;
        let (low, high) = (*sorted.get(below)?, *sorted.get(count.checked_sub(below + 1)?)?);
        let median = f64::midpoint(*sorted.get((count - 1) / 2)?, *sorted.get(count / 2)?);
        Some(Self { median, low, high })
    }

    /// Of what one is to another, round by round: what slows a whole round down does not count.
    pub(super) fn of_ratios(values: &[f64], to: &[f64]) -> Option<Self> {
        let ratios: Vec<f64> = values.iter().zip(to).map(|(value, to)| value / to).collect();
        Self::of(&ratios)
    }

    /// The reciprocal.
    pub(super) fn inverse(self) -> Self {
        Self { median: 1.0 / self.median, low: 1.0 / self.high, high: 1.0 / self.low }
    }

    pub(super) fn at_least(self, bound: f64) -> Answer {
        match self {
            Self { low, .. } if low >= bound => Answer::Yes,
            Self { high, .. } if high < bound => Answer::No,
            _ => Answer::Unclear,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_within_the_values() {
        let values: Vec<f64> = (1..=25).map(f64::from).collect();
        assert_eq!(Estimate::of(&values), Some(Estimate { median: 13.0, low: 8.0, high: 18.0 }));
        assert_eq!(Estimate::of(&[2.0, 1.0]), Some(Estimate { median: 1.5, low: 1.0, high: 2.0 }));
        assert_eq!(Estimate::of(&[]), None);
    }

    #[test]
    fn rounds_are_compared_one_by_one() {
        let ratio = Estimate::of_ratios(&[10.0, 100.0, 1000.0], &[20.0, 200.0, 2000.0]).unwrap();
        assert_eq!((ratio.median, ratio.low, ratio.high), (0.5, 0.5, 0.5));
        assert_eq!((ratio.at_least(0.4), ratio.at_least(0.6)), (Answer::Yes, Answer::No));
        assert_eq!(ratio.inverse().median, 2.0);
        let wide = Estimate { median: 1.0, low: 0.9, high: 1.1 };
        assert_eq!(wide.at_least(0.95), Answer::Unclear);
    }
}
