//! The time that templates print. One moment holds for a whole rendering, so that all rows carry the same date.

/// A local date and time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    year: i64,
    month: u32,
    day: u32,
    hour: u32,
    minute: u32,
    second: u32,
}

const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
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

impl Moment {
    /// Read "2026-11-21T23:44:54", as Python's `datetime.isoformat` writes it; what follows the seconds is passed over.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let number = |range: std::ops::Range<usize>| text.get(range)?.parse().ok();
        let moment = Self {
            year: text.get(..4)?.parse().ok()?,
            month: number(5..7)?,
            day: number(8..10)?,
            hour: number(11..13)?,
            minute: number(14..16)?,
            second: number(17..19)?,
        };
        ((1..=12).contains(&moment.month) && (1..=31).contains(&moment.day)).then_some(moment)
    }

    /// Write as `strftime` does in the C locale; nothing for a directive that depends on the platform.
    pub(super) fn format(&self, format: &str) -> Option<String> {
        let mut written = String::new();
        let mut characters = format.chars();
        while let Some(character) = characters.next() {
            match character {
                '%' => written.push_str(&self.directive(characters.next()?)?),
                _ => written.push(character),
            }
        }
        Some(written)
    }

    fn directive(&self, directive: char) -> Option<String> {
        let hour = if self.hour.is_multiple_of(12) { 12 } else { self.hour % 12 };
        let day_name = DAYS.get(self.weekday())?;
        let month_name = MONTHS.get(self.month as usize - 1)?;
        Some(match directive {
            'Y' => self.year.to_string(),
            'y' => format!("{:02}", self.year % 100),
            'm' => format!("{:02}", self.month),
            'd' => format!("{:02}", self.day),
            'e' => format!("{:2}", self.day),
            'j' => format!("{:03}", self.day_of_year()),
            'H' => format!("{:02}", self.hour),
            'I' => format!("{hour:02}"),
            'M' => format!("{:02}", self.minute),
            'S' => format!("{:02}", self.second),
            'p' => (if self.hour < 12 { "AM" } else { "PM" }).to_owned(),
            'A' => (*day_name).to_owned(),
            'a' => day_name.get(..3)?.to_owned(),
            'B' => (*month_name).to_owned(),
            'b' => month_name.get(..3)?.to_owned(),
            '%' => "%".to_owned(),
            _ => return None,
        })
    }

    fn day_of_year(&self) -> u32 {
        let leap = (self.year % 4 == 0 && self.year % 100 != 0) || self.year % 400 == 0;
        let before = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334];
        before[self.month as usize - 1] + self.day + u32::from(leap && self.month > 2)
    }

    /// 0 is Sunday.
    fn weekday(&self) -> usize {
        let years = self.year - 1;
        let days = years * 365 + years / 4 - years / 100 + years / 400 + i64::from(self.day_of_year());
        usize::try_from(days.rem_euclid(7)).unwrap_or_default()
    }
}
