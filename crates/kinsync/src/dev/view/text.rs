//! Numbers, times and user-provided text as text for a terminal.

use std::time::Duration;

use crate::plural::plural;

const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// `1204` as `1,204`.
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (n, digit) in digits.chars().enumerate() {
        if n > 0 && (digits.len() - n).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `1 user`, `1,204 users`.
pub(super) fn counted(number: u64, one: &'static str, many: &'static str) -> String {
    format!("{} {}", grouped(number), plural(number, one, many))
}

/// Seconds as `25 ms`, `1.5 s` or `2 min`.
pub(super) fn span(seconds: f64) -> String {
    match seconds {
        s if s.is_infinite() => "∞".to_owned(),
        s if s < 1.0 => format!("{:.0} ms", s * 1000.0),
        s if s < 10.0 && s.fract() > 0.0 => format!("{s:.1} s"),
        s if s < 120.0 => format!("{s:.0} s"),
        s => format!("{:.0} min", s / 60.0),
    }
}

/// A time as `1:02:03` or `2:03`.
pub(super) fn clock(time: Duration) -> String {
    let (hours, minutes, seconds) = (time.as_secs() / 3600, time.as_secs() / 60 % 60, time.as_secs() % 60);
    if hours > 0 { format!("{hours}:{minutes:02}:{seconds:02}") } else { format!("{minutes}:{seconds:02}") }
}

/// The last counts as bars. Twice the median is a full bar, so that a burst does not flatten the others.
pub(super) fn sparkline(counts: &[u64], room: usize) -> String {
    let shown = &counts[counts.len().saturating_sub(room)..];
    let mut sorted = shown.to_vec();
    sorted.sort_unstable();
    let full = sorted.get(sorted.len() / 2).map_or(1, |median| (median * 2).max(1));
    let bar = |count: u64| BARS[usize::try_from((count * 7).div_ceil(full)).unwrap_or(7).min(7)];
    shown.iter().copied().map(bar).collect()
}

/// Replaces control characters and characters that change the direction of the text.
pub(super) fn plain(text: &str) -> String {
    let controls = |c: char| {
        c.is_control()
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
    };
    text.chars().map(|c| if controls(c) { '·' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_times_are_readable() {
        let numbers = [0, 999, 1000, 1_234_567].map(grouped);
        assert_eq!(numbers.join(" "), "0 999 1,000 1,234,567");
        let users = [0, 1, 2].map(|users| counted(users, "user", "users"));
        assert_eq!(users.join(", "), "0 users, 1 user, 2 users");
        let spans = [0.005, 0.25, 1.0, 2.5, 60.0, 300.0, f64::INFINITY].map(span);
        assert_eq!(spans.join(", "), "5 ms, 250 ms, 1 s, 2.5 s, 60 s, 5 min, ∞");
        assert_eq!([7, 133, 3723].map(|s| clock(Duration::from_secs(s))).join(", "), "0:07, 2:13, 1:02:03");
    }
}
