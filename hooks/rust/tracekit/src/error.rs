//! What can go wrong.

use std::fmt;
use std::path::{Path, PathBuf};

/// What went wrong, in one sentence: file, place, problem, remedy where there is one.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// A file cannot be read or written.
    #[non_exhaustive]
    File {
        /// Its path.
        path: PathBuf,
        /// What was tried: `read`, `written`, `flushed`.
        tried: &'static str,
        /// Why it failed.
        source: std::io::Error,
    },
    /// A frame that a reader would reject: nothing of it is written.
    #[non_exhaustive]
    Frame {
        /// The name or tensor at fault.
        detail: String,
    },
    /// A file that is to be followed holds no such trace.
    #[non_exhaustive]
    Trace {
        /// Its path.
        path: PathBuf,
        /// What is wrong with it.
        detail: String,
    },
    /// A draw of the followed trace that this run cannot repeat.
    #[non_exhaustive]
    Draw {
        /// Index of the sequence.
        sequence: usize,
        /// Index of the step.
        step: usize,
        /// Why not.
        detail: String,
    },
    /// An environment variable has a value without a meaning.
    #[non_exhaustive]
    Variable {
        /// Its name.
        name: &'static str,
        /// Its value and what it may be.
        detail: String,
        /// Why the value cannot be read, where a library says so.
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
    /// The trace that the process follows cannot be read; it was tried once.
    #[non_exhaustive]
    Followed {
        /// What was wrong.
        source: &'static Error,
    },
    /// An error of candle's.
    #[cfg(feature = "candle")]
    #[non_exhaustive]
    Candle {
        /// What it says.
        source: candle_core::Error,
    },
}

impl Error {
    /// For `map_err` on what opens, reads or writes `path`.
    pub(crate) fn file<'a>(path: &'a Path, tried: &'static str) -> impl FnOnce(std::io::Error) -> Self + 'a {
        move |source| Self::File { path: path.to_path_buf(), tried, source }
    }

    pub(crate) fn frame(detail: impl Into<String>) -> Self {
        Self::Frame { detail: detail.into() }
    }

    pub(crate) fn variable(name: &'static str, detail: impl Into<String>) -> Self {
        Self::Variable { name, detail: detail.into(), source: None }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, tried, source } => write!(formatter, "{}: cannot be {tried}: {source}", path.display()),
            Self::Frame { detail } => formatter.write_str(detail),
            Self::Trace { path, detail } => write!(formatter, "{}: {detail}", path.display()),
            Self::Draw { sequence, step, detail } => {
                write!(formatter, "sequence {sequence}, step {step}: its draw {detail}")
            }
            Self::Variable { name, detail, source: None } => write!(formatter, "{name} is {detail}"),
            Self::Variable { name, detail, source: Some(source) } => write!(formatter, "{name} is {detail}: {source}"),
            Self::Followed { source } => source.fmt(formatter),
            #[cfg(feature = "candle")]
            Self::Candle { source } => source.fmt(formatter),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::File { source, .. } => Some(source),
            Self::Variable { source, .. } => source.as_deref().map(|source| source as _),
            Self::Followed { source } => source.source(),
            #[cfg(feature = "candle")]
            Self::Candle { source } => Some(source),
            Self::Frame { .. } | Self::Trace { .. } | Self::Draw { .. } => None,
        }
    }
}

#[cfg(feature = "candle")]
impl From<candle_core::Error> for Error {
    fn from(source: candle_core::Error) -> Self {
        Self::Candle { source }
    }
}

/// So that what this crate gives can be passed on with `?` in a function of candle's.
#[cfg(feature = "candle")]
impl From<Error> for candle_core::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Candle { source } => source,
            other => Self::Msg(other.to_string()),
        }
    }
}

/// Result of everything here.
///
/// What records (taps, steps, sequences, `describe`, `register...`, `close`) is always `Ok`: an error of ours never
/// reaches the program that is recorded. It is a `Result` all the same so that it can stand where the program's own
/// calls stand, `tracekit::forward(position, rows)?`. What reads (logs, traces to follow) does fail.
pub type Result<T> = std::result::Result<T, Error>;

#[cfg(test)]
mod tests {
    use std::error::Error as _;

    use super::*;

    #[test]
    fn an_error_says_where_and_keeps_its_cause() {
        let missing = std::io::Error::new(std::io::ErrorKind::NotFound, "no such file");
        let error = Error::file(Path::new("a.tklog"), "read")(missing);
        assert_eq!(error.to_string(), "a.tklog: cannot be read: no such file");
        assert!(error.source().is_some_and(|cause| cause.is::<std::io::Error>()));
        let error = Error::variable("TRACEKIT_LOGITS", "\"x\"; use full or a count above 0");
        assert_eq!(error.to_string(), "TRACEKIT_LOGITS is \"x\"; use full or a count above 0");
        assert!(error.source().is_none());
    }

    #[test]
    fn an_error_that_the_process_keeps_has_the_cause_of_the_first() {
        let missing = std::io::Error::new(std::io::ErrorKind::NotFound, "no such file");
        let kept: &'static Error = Box::leak(Box::new(Error::file(Path::new("a.tklog"), "read")(missing)));
        let error = Error::Followed { source: kept };
        assert_eq!(error.to_string(), kept.to_string());
        assert!(error.source().is_some_and(|cause| cause.is::<std::io::Error>()));
    }

    #[cfg(feature = "candle")]
    #[test]
    fn an_error_of_candle_comes_back_as_it_was() {
        let shape = candle_core::Tensor::zeros(3, candle_core::DType::F32, &candle_core::Device::Cpu)
            .and_then(|xs| xs.reshape((2, 2)))
            .expect_err("3 are not 4");
        let text = shape.to_string();
        let ours = Error::from(shape);
        assert!(ours.to_string() == text && ours.source().is_some());
        assert_eq!(candle_core::Error::from(ours).to_string(), text);
    }
}
