//! The order of roles in a conversation: which role may follow which.

use super::fields::Fields;
use crate::nearest::suggestion;
use crate::record::Message;

/// Whose turn a conversation must end with.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Last {
    /// The assistant's: an example to learn.
    Assistant,
    /// The user's or a tool's: a prompt.
    User,
}

/// Checks that turns alternate after an optional system message. Results of several tools may follow each other.
pub(super) fn check(messages: &[Message], last: Last) -> Result<(), String> {
    let mut previous = "";
    for (index, message) in messages.iter().enumerate() {
        let role = message.role.as_str();
        let allowed = match role {
            "system" | "developer" => index == 0,
            "user" => matches!(previous, "" | "system" | "developer" | "assistant"),
            "tool" => matches!(previous, "assistant" | "tool"),
            _ => matches!(previous, "user" | "tool"),
        };
        if !allowed {
            let place = if previous.is_empty() {
                "at the start".to_string()
            } else {
                format!("after `{previous}`")
            };
            let rule =
                "turns alternate between user and assistant after an optional system message";
            return Err(format!("turn {}: `{role}` {place}; {rule}", index + 1));
        }
        previous = role;
    }
    match (last, previous) {
        (Last::Assistant, "assistant") | (Last::User, "user" | "tool") => Ok(()),
        (_, "") => Err("the conversation is empty".to_string()),
        (Last::Assistant, other) => Err(format!(
            "the last turn must be the assistant's, found `{other}`"
        )),
        (Last::User, other) => Err(format!(
            "the last turn before the answer must be the user's, found `{other}`"
        )),
    }
}

/// The messages after the record's `system` message, unless they bring the same themselves.
pub(super) fn with_system(
    fields: &Fields,
    mut messages: Vec<Message>,
) -> Result<Vec<Message>, String> {
    let Some(system) = fields.text("system")?.filter(|system| !system.is_empty()) else {
        return Ok(messages);
    };
    match messages.first() {
        Some(first) if matches!(first.role.as_str(), "system" | "developer") => {
            if first.text().trim() != system.trim() {
                return Err(format!(
                    "`system` and the first turn, which is the {}'s, say different things; keep one of them",
                    first.role
                ));
            }
        }
        _ => messages.insert(0, Message::system(system)),
    }
    Ok(messages)
}

/// Our name of a role: `user`, `assistant`, `system`, `developer` or `tool`.
pub(super) fn role(name: &str) -> Result<&'static str, String> {
    match name {
        "user" | "human" => Ok("user"),
        "assistant" | "gpt" => Ok("assistant"),
        "system" => Ok("system"),
        "developer" => Ok("developer"),
        "tool" | "observation" | "function" => Ok("tool"),
        _ => {
            let known = [
                "user",
                "human",
                "assistant",
                "gpt",
                "system",
                "developer",
                "tool",
                "observation",
                "function",
            ];
            let shown: String = name.chars().take(40).collect();
            Err(format!(
                "no role `{shown}`{}; there are: {}",
                suggestion(name, known),
                known.join(", ")
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_system_message_stands_in_one_place() {
        let read = |system: &str, messages: Vec<Message>| {
            let map = serde_json::Map::from_iter([("system".to_owned(), system.into())]);
            with_system(&Fields::new(super::super::Form::Messages, map), messages)
        };
        let (own, user) = (Message::system("be brief"), Message::user("a"));
        let both = vec![own.clone(), user.clone()];
        assert_eq!(read("be brief", vec![user.clone()]).unwrap(), both);
        assert_eq!(read("be brief\n", both.clone()).unwrap(), both);
        assert_eq!(read("", both.clone()).unwrap(), both);
        let error = read("be long", both).unwrap_err();
        assert!(error.starts_with("`system` and the first turn"), "{error}");
    }

    fn checked(roles: &str, last: Last) -> Result<(), String> {
        let messages: Vec<Message> = roles
            .split_whitespace()
            .map(|role| Message::new(role, ""))
            .collect();
        check(&messages, last)
    }

    #[test]
    fn what_is_allowed() {
        for roles in [
            "user assistant",
            "system user assistant",
            "developer user assistant",
            "user assistant tool tool assistant user assistant",
        ] {
            assert_eq!(checked(roles, Last::Assistant), Ok(()));
        }
        assert_eq!(checked("user assistant tool", Last::User), Ok(()));
    }

    #[test]
    fn what_is_not() {
        for (roles, reason) in [
            ("", "the conversation is empty"),
            ("system", "found `system`"),
            ("assistant", "turn 1: `assistant` at the start"),
            ("user user assistant", "turn 2: `user` after `user`"),
            (
                "user assistant assistant",
                "turn 3: `assistant` after `assistant`",
            ),
            ("user system assistant", "turn 2: `system` after `user`"),
            ("user tool assistant", "turn 2: `tool` after `user`"),
            (
                "user assistant user",
                "must be the assistant's, found `user`",
            ),
        ] {
            let message = checked(roles, Last::Assistant).unwrap_err();
            assert!(message.contains(reason), "{message}");
        }
        assert!(checked("user assistant", Last::User).is_err());
        assert!(
            role("asistant")
                .unwrap_err()
                .contains("did you mean `assistant`?")
        );
    }
}
