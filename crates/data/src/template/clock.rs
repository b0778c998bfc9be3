//! `strftime_now`: today's date in a prompt, in UTC, English names.
//!
//! Calendar arithmetic after Howard Hinnant's "chrono-compatible low-level date algorithms".

use std::time::{SystemTime, UNIX_EPOCH};

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = [
    "Thursday",
    "Friday",
    "Saturday",
    "Sunday",
    "Monday",
    "Tuesday",
    "Wednesday",
];

/// The present time by a `strftime` format.
pub(super) fn now(format: &str) -> String {
    let seconds = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    format_time(seconds, format)
}

/// Seconds since 1970 by a `strftime` format; unknown directives stay as they are.
fn format_time(seconds: u64, format: &str) -> String {
    let mut text = String::new();
    let mut characters = format.chars();
    while let Some(character) = characters.next() {
        match (character, characters.clone().next()) {
            ('%', Some('-')) => {
                characters.next();
                let directive = characters.next().unwrap_or('-');
                let written = directive_text(seconds, directive);
                let digits = written.trim_start_matches('0');
                text += if digits.is_empty() { "0" } else { digits };
            }
            ('%', Some(directive)) => {
                characters.next();
                text += &directive_text(seconds, directive);
            }
            _ => text.push(character),
        }
    }
    text
}

fn directive_text(seconds: u64, directive: char) -> String {
    let days = seconds / 86_400;
    let (year, month, day) = date(days);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    match directive {
        'Y' => year.to_string(),
        'y' => format!("{:02}", year % 100),
        'm' => format!("{month:02}"),
        'B' => MONTHS[month - 1].into(),
        'b' => MONTHS[month - 1][..3].into(),
        'd' => format!("{day:02}"),
        'A' => DAYS[(days % 7) as usize].into(),
        'a' => DAYS[(days % 7) as usize][..3].into(),
        'H' => format!("{hour:02}"),
        'I' => format!("{:02}", (hour + 11) % 12 + 1),
        'p' => if hour < 12 { "AM" } else { "PM" }.into(),
        'M' => format!("{minute:02}"),
        'S' => format!("{second:02}"),
        'j' => format!("{:03}", days - first_day(days) + 1),
        'h' => MONTHS[month - 1][..3].into(),
        'e' => format!("{day:2}"),
        'u' => ((days + 3) % 7 + 1).to_string(),
        'w' => ((days + 4) % 7).to_string(),
        'C' => format!("{:02}", year / 100),
        'U' => format!("{:02}", week(days, (days + 4) % 7)),
        'W' => format!("{:02}", week(days, (days + 3) % 7)),
        'D' | 'x' => format_time(seconds, "%m/%d/%y"),
        'F' => format_time(seconds, "%Y-%m-%d"),
        'T' | 'X' => format_time(seconds, "%H:%M:%S"),
        'R' => format_time(seconds, "%H:%M"),
        'r' => format_time(seconds, "%I:%M:%S %p"),
        'c' => format_time(seconds, "%a %b %e %H:%M:%S %Y"),
        'f' => "000000".into(),
        's' => seconds.to_string(),
        'n' => "\n".into(),
        't' => "\t".into(),
        // The time is one without a zone.
        'Z' | 'z' => String::new(),
        '%' => "%".into(),
        other => format!("%{other}"),
    }
}

/// The first day of a day's year, in days since 1970-01-01.
fn first_day(day: u64) -> u64 {
    let (year, ..) = date(day);
    let mut first = day - day.min(366);
    while date(first).0 < year {
        first += 1;
    }
    first
}

/// The week of the year, the first of which begins on its first first day; `place` is a day's place in its week, from 0.
fn week(day: u64, place: u64) -> u64 {
    (day - first_day(day) + 7 - place) / 7
}

/// Year, month from 1 and day from 1 of a number of days since 1970-01-01. Years begin in March, so leap days come last.
fn date(days: u64) -> (u64, usize, u64) {
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    (
        era * 400 + year_of_era + u64::from(month <= 2),
        month as usize,
        day,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_eq!(
            format_time(0, "%A %Y-%m-%d %H:%M:%S"),
            "Thursday 1970-01-01 00:00:00"
        );
        assert_eq!(
            format_time(1_709_210_096, "%a %d %b %Y %I:%M %p"),
            "Thu 29 Feb 2024 12:34 PM"
        );
        assert_eq!(
            format_time(951_868_800, "%-d %B %y 100%% %Q"),
            "1 March 00 100% %Q"
        );
        assert_eq!(
            format_time(951_868_800, "%j %-H %e %F %a %u %w %U %W %D %T"),
            "061 0  1 2000-03-01 Wed 3 3 09 09 03/01/00 00:00:00"
        );
        assert_eq!(format_time(0, "%j %c%Z"), "001 Thu Jan  1 00:00:00 1970");
    }
}
