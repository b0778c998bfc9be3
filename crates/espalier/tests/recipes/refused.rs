//! Keys that would be ignored, and values that make no sense, are refused before anything runs.
