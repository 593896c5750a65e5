//! What goes wrong, in one sentence for stderr; the program then exits 2.

/// A sentence that says what is wrong and where.
#[derive(Debug)]
pub struct Trouble(String);

/// Result of everything here that can fail.
pub type Result<T> = std::result::Result<T, Trouble>;

/// A `Trouble` of this text.
pub fn trouble(text: impl Into<String>) -> Trouble {
    Trouble(text.into())
}

impl std::fmt::Display for Trouble {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // candle's errors may carry a backtrace behind the first line.
        formatter.write_str(self.0.lines().next().unwrap_or_default())
    }
}

impl From<candle_core::Error> for Trouble {
    fn from(error: candle_core::Error) -> Self {
        Self(error.to_string())
    }
}

impl From<tracekit::Error> for Trouble {
    fn from(error: tracekit::Error) -> Self {
        Self(error.to_string())
    }
}
