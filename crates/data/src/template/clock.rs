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
                text += directive_text(seconds, directive).trim_start_matches('0');
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
        '%' => "%".into(),
        other => format!("%{other}"),
    }
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
    }
}
