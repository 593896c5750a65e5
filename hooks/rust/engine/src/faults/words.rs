//! The arguments of a fault, `NAME[:ARGUMENT...]`, read from the left. One that is left out or empty has a default.

/// What is left to read. Each reader gives `None` where the word is no such thing.
pub struct Words<'a> {
    words: std::iter::Peekable<std::str::Split<'a, char>>,
}

impl<'a> Words<'a> {
    /// The name, and its arguments.
    pub fn of(text: &'a str) -> (&'a str, Self) {
        let mut words = text.split(':');
        let name = words.next().unwrap_or_default();
        (name, Self { words: words.peekable() })
    }

    fn next(&mut self) -> Option<&'a str> {
        self.words.next().filter(|word| !word.is_empty())
    }

    /// A finite number.
    pub fn number(&mut self, default: f64) -> Option<f64> {
        match self.next() {
            None => Some(default),
            Some(word) => word.parse().ok().filter(|number: &f64| number.is_finite()),
        }
    }

    /// A number above 0.
    pub fn positive(&mut self, default: f64) -> Option<f64> {
        self.number(default).filter(|&number| number > 0.0)
    }

    /// A whole number, 0 or more.
    pub fn count(&mut self, default: usize) -> Option<usize> {
        match self.next() {
            None => Some(default),
            Some(word) => word.parse().ok(),
        }
    }

    /// A layer's number; without it, `Some(None)`: all layers.
    pub fn layer(&mut self) -> Option<Option<usize>> {
        match self.next() {
            None => Some(None),
            Some(word) => word.parse().ok().map(Some),
        }
    }

    /// A site's name, which may itself end in ":in".
    pub fn site(&mut self) -> Option<String> {
        let name = self.next()?;
        match self.words.next_if_eq(&"in") {
            Some(_) => Some(format!("{name}:in")),
            None => Some(name.to_string()),
        }
    }

    /// Any word.
    pub fn word(&mut self) -> Option<&'a str> {
        self.next()
    }

    /// Whether nothing is left.
    pub fn is_done(&mut self) -> bool {
        self.words.next().is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::Words;

    #[test]
    fn a_site_keeps_its_in() {
        let (name, mut words) = Words::of("gain:model.norm:in:2");
        assert_eq!((name, words.site().as_deref(), words.number(1.0)), ("gain", Some("model.norm:in"), Some(2.0)));
        assert!(words.is_done());
    }

    #[test]
    fn what_is_left_out_is_the_default() {
        let (_, mut words) = Words::of("norm-eps::model.norm");
        assert_eq!((words.number(0.5), words.site().as_deref()), (Some(0.5), Some("model.norm")));
        assert_eq!((words.count(4), words.layer(), words.site()), (Some(4), Some(None), None));
    }

    #[test]
    fn what_is_no_number_is_no_default() {
        for text in ["x:a", "x:nan", "x:-1"] {
            assert_eq!(Words::of(text).1.positive(1.0), None, "{text}");
        }
        assert_eq!(Words::of("x:-1").1.layer(), None);
    }
}
