//! The word lists that the worlds share. Their order is part of the worlds: changing it changes every item.

macro_rules! lists {
    ($($(#[$note:meta])* $name:ident = $($word:literal)+;)+) => {
        $($(#[$note])* pub const $name: &[&str] = &[$($word),+];)+
    };
}

lists! {
    /// People.
    NAMES = "Ada" "Ben" "Cleo" "Dan" "Eva" "Finn" "Gia" "Hugo" "Ivy" "Jack" "Kira" "Leo" "Mia" "Noah" "Olga" "Pam" "Quinn"
        "Rosa" "Sam" "Tess" "Uma" "Vic" "Wes" "Zoe";
    /// Things that are counted.
    ITEMS = "apples" "books" "coins" "dolls" "eggs" "figs" "gems" "hats" "jars" "keys" "lamps" "mugs" "nuts" "pens" "rings"
        "shells" "stones" "toys";
    /// Cities.
    CITIES = "Oslo" "Lima" "Rome" "Cairo" "Quito" "Paris" "Delhi" "Tokyo" "Accra" "Milan" "Perth" "Sofia";
    /// Jobs.
    JOBS = "baker" "pilot" "nurse" "farmer" "painter" "judge" "miner" "singer" "tailor" "guard" "cook" "clerk";
    /// Pets.
    PETS = "cat" "dog" "fox" "owl" "frog" "goat" "duck" "bee" "crab" "hen" "mole" "newt";
    /// Colors.
    COLORS = "red" "blue" "green" "pink" "gold" "gray" "teal" "tan" "lime" "plum" "navy" "rust";
    /// Heroes of stories.
    HEROES = "girl" "boy" "cat" "dog" "rabbit" "bear" "fox" "mouse" "duck" "frog" "bird" "horse";
    /// How heroes are.
    ADJECTIVES = "little" "small" "brave" "kind" "shy" "funny" "happy" "lonely" "clever" "gentle" "curious" "sleepy";
    /// Where stories happen.
    PLACES = "forest" "garden" "park" "farm" "house" "school" "beach" "village" "river" "hill" "barn" "market";
    /// What stories are about.
    OBJECTS = "ball" "kite" "book" "hat" "cake" "boat" "drum" "bell" "lamp" "box" "key" "shell";
    /// How objects are.
    OBJECT_ADJECTIVES = "red" "blue" "green" "yellow" "big" "tiny" "shiny" "old" "soft" "round" "new" "pretty";
    /// The weather of a story.
    WEATHERS = "sunny" "rainy" "windy" "cold" "warm" "cloudy" "snowy" "foggy";
    /// Who helps.
    HELPERS = "mother" "father" "teacher" "sister" "brother" "neighbor" "grandmother" "grandfather";
    /// How a hero feels in trouble.
    FEELINGS = "sad" "worried" "angry" "afraid" "tired" "upset";
    /// How a hero feels in the end.
    GOOD_FEELINGS = "happy" "proud" "glad" "cheerful" "thankful" "calm";
    /// What happens to the object; the fix is at the same place of [`FIXES`].
    PROBLEMS = "was stuck in a tall tree" "fell into the deep water" "was lost in the tall grass" "was under a heavy rock"
        "was locked behind a gate" "was broken in two" "was taken by a big wind" "was hidden in a dark cave";
    /// What helps against the problem at the same place of [`PROBLEMS`].
    FIXES = "climbed up slowly" "used a long stick" "looked very carefully" "pushed with all their strength"
        "found a small gap" "used some strong glue" "ran as fast as they could" "carried a bright candle";
    /// What a hero learns.
    MORALS = "sharing makes friends" "it is good to ask for help" "being kind is never a waste" "brave hearts find a way"
        "slow and careful works best" "friends make hard things easy" "telling the truth feels good"
        "it is never too late to try";
    /// Phrases that an answer can be asked to end with.
    END_PHRASES = "The end." "That is all." "Good night.";
}

/// Replaces each `{slot}` of a template by its value.
pub(crate) fn fill(template: &str, slots: &[(&str, &str)]) -> String {
    slots
        .iter()
        .fold(template.to_string(), |text, (slot, value)| {
            text.replace(&format!("{{{slot}}}"), value)
        })
}
