//! Figures as text.

use crate::answer;

/// How rates are shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Rates {
    #[default]
    Bits,
    Bytes,
}

impl Rates {
    /// The other one.
    pub fn other(self) -> Rates {
        match self {
            Rates::Bits => Rates::Bytes,
            Rates::Bytes => Rates::Bits,
        }
    }
}

/// What a figure counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Bits per second, shown as [`Rates`] say.
    Rate,
    Bytes,
    Micros,
    Count,
    PerSecond,
    /// A share of 1.
    Share,
    /// A share of 100.
    Percent,
}

/// A figure as a person reads it.
pub fn figure(value: f64, unit: Unit, rates: Rates) -> String {
    match (unit, rates) {
        (Unit::Rate, Rates::Bits) => answer::bit_rate(value),
        (Unit::Rate, Rates::Bytes) => format!("{}B/s", answer::si(value / 8.0)),
        (Unit::Bytes, _) => format!("{}B", answer::si(value)),
        (Unit::Micros, _) => answer::micros(value.max(0.0) as u64),
        (Unit::Count, _) if value < 1e6 => format!("{value:.0}"),
        (Unit::Count, _) => answer::si(value).trim_end().to_owned(),
        (Unit::PerSecond, _) => format!("{}/s", answer::si(value)),
        (Unit::Share, _) => format!("{:.1} %", value * 100.0),
        (Unit::Percent, _) => format!("{value:.1} %"),
    }
}

/// The unit of a field, by the end of its name.
pub fn unit_of(field: &str) -> Option<Unit> {
    const ENDINGS: [(&str, Unit); 6] = [
        ("bits_per_second", Unit::Rate),
        ("packets_per_second", Unit::PerSecond),
        ("_bytes", Unit::Bytes),
        ("_us", Unit::Micros),
        ("_percent", Unit::Percent),
        ("share", Unit::Share),
    ];
    ENDINGS.iter().find(|(ending, _)| field.ends_with(ending)).map(|(_, unit)| *unit)
}

/// A line of bars, one character per value, newest last; as long as `width`.
pub fn bars(values: &[f64], width: usize) -> String {
    const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let newest = &values[values.len().saturating_sub(width)..];
    let most = newest.iter().copied().fold(0.0, f64::max);
    let bar = |value: &f64| {
        let level = if most > 0.0 { (value / most * (BARS.len() - 1) as f64).ceil() as usize } else { 0 };
        BARS[level.min(BARS.len() - 1)]
    };
    let blank = " ".repeat(width - newest.len());
    blank + &newest.iter().map(bar).collect::<String>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_bits_or_bytes() {
        let rate = |rates| figure(8_000.0, Unit::Rate, rates);
        assert_eq!([rate(Rates::Bits), rate(Rates::Bytes)], ["8.0 kbit/s", "1.0 kB/s"]);
        assert_eq!(Rates::Bits.other().other(), Rates::Bits);
    }

    #[test]
    fn unit_follows_from_the_field_name() {
        assert_eq!(unit_of("rx_bits_per_second"), Some(Unit::Rate));
        assert_eq!(unit_of("connect_latency_us"), Some(Unit::Micros));
        assert_eq!((unit_of("pid"), unit_of("rx.bytes")), (None, None));
    }

    #[test]
    fn smallest_traffic_is_higher_than_none() {
        assert_eq!(bars(&[0.0, 1.0, 1_000.0], 5), "  ▁▂█");
        assert_eq!(bars(&[1.0, 2.0, 0.0, 4.0], 2), "▁█");
        assert_eq!(bars(&[0.0, 0.0], 2), "▁▁");
    }
}
