//! Seam: the loaded config. What is changed here for all layers is reported as used, unless the run is to be quiet.

use super::words::Words;
use super::{here, Faults, Kind as Any, Row};
use crate::config::Config;
use crate::trouble::{trouble, Result};

pub const TABLE: &[Row] = &[
    ("rope-theta[:THETA[:LAYER]]", "Another rotary base; 10000. For all layers it is reported, see --quiet-config"),
    ("norm-eps[:EPS[:SITE]]", "Another eps of the norms; 1e-6. For all norms it is reported, see --quiet-config"),
];

#[derive(Debug)]
pub enum Kind {
    RopeTheta { theta: f64, layer: Option<usize> },
    NormEps { eps: f64, site: Option<String> },
}

pub fn parse(name: &str, words: &mut Words) -> Option<Kind> {
    Some(match name {
        "rope-theta" => Kind::RopeTheta { theta: words.positive(10_000.0)?, layer: words.layer()? },
        "norm-eps" => Kind::NormEps { eps: words.number(1e-6)?, site: words.site() },
        _ => return None,
    })
}

impl Faults {
    fn find_config<T>(&self, pick: impl Fn(&Kind) -> Option<T>) -> Option<T> {
        self.find(|kind| match kind {
            Any::Config(kind) => pick(kind),
            _ => None,
        })
    }

    /// The settings that are used and reported. A quiet run changes each layer instead.
    pub fn config(&self, config: &mut Config) -> Result<()> {
        let theta = self.find_config(|kind| match kind {
            Kind::RopeTheta { theta, layer: None } => Some(*theta),
            _ => None,
        });
        let eps = self.find_config(|kind| match kind {
            Kind::NormEps { eps, site: None } => Some(*eps),
            _ => None,
        });
        self.replace("rope-theta", &mut config.rope.theta, theta)?;
        self.replace("norm-eps", &mut config.rms_norm_eps, eps)
    }

    fn replace(&self, name: &str, setting: &mut f64, value: Option<f64>) -> Result<()> {
        match value {
            Some(value) if value == *setting => Err(trouble(format!("--fault {name}: the model uses {value} already"))),
            Some(value) if !self.quiet => {
                *setting = value;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// The rotary base of a layer, where it is not the config's.
    pub(super) fn theta(&self, index: usize) -> Option<f64> {
        self.find_config(|kind| match kind {
            Kind::RopeTheta { theta, layer } if here(*layer, index) => Some(*theta),
            _ => None,
        })
    }

    /// The eps of a norm, where it is not the config's.
    pub(super) fn eps(&self, norm: &str) -> Option<f64> {
        self.find_config(|kind| match kind {
            Kind::NormEps { eps, site } if site.as_deref().is_none_or(|site| site == norm) => Some(*eps),
            _ => None,
        })
    }
}
