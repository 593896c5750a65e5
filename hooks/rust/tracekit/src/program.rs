//! What is known of the program before it generates: the first frame of the log.

use std::collections::HashSet;

use serde_json::{json, Map, Value};

use crate::log::{object, Dtype, TensorRef, Writer};
use crate::Result;

/// What the program is, told before the first sequence. Everything may be left empty.
///
/// ```
/// use tracekit::Description;
/// let description = Description::new().version("candle", "0.11").checkpoint("model/".to_string()).seed(42);
/// # assert_eq!(description.seed, Some(42));
/// ```
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Description {
    /// Short word; `native` where empty.
    pub implementation: String,
    /// Name and version of what computes, `[("candle", "0.11.1")]`.
    pub versions: Vec<(String, String)>,
    /// `cpu`, `cuda:0`; where candle's tensors lie, where empty.
    pub device: String,
    /// torch's word, `float32`; that of the first parameter where empty.
    pub dtype: String,
    /// Hyper-parameters as the engine uses them, in the words of a Hugging Face `config.json`.
    pub model: Value,
    /// Sampling settings in the words of transformers' GenerationConfig.
    pub sampling: Value,
    /// The declared seed.
    pub seed: Option<u64>,
    /// Folder or file that the weights came from.
    pub checkpoint: Option<String>,
}

impl Description {
    /// Nothing is said yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// With a short word for the program.
    #[must_use]
    pub fn implementation(mut self, word: impl Into<String>) -> Self {
        self.implementation = word.into();
        self
    }

    /// With name and version of something that computes; may be said several times.
    #[must_use]
    pub fn version(mut self, name: impl Into<String>, version: impl Into<String>) -> Self {
        self.versions.push((name.into(), version.into()));
        self
    }

    /// With the device, in torch's words.
    #[must_use]
    pub fn device(mut self, device: impl Into<String>) -> Self {
        self.device = device.into();
        self
    }

    /// With the number format, in torch's words.
    #[must_use]
    pub fn dtype(mut self, dtype: impl Into<String>) -> Self {
        self.dtype = dtype.into();
        self
    }

    /// With the hyper-parameters that the program uses: an object, in the words of `config.json`.
    #[must_use]
    pub fn model(mut self, model: Value) -> Self {
        self.model = model;
        self
    }

    /// With the sampling settings: an object, in the words of `generation_config.json`.
    #[must_use]
    pub fn sampling(mut self, sampling: Value) -> Self {
        self.sampling = sampling;
        self
    }

    /// With the declared seed.
    #[must_use]
    pub fn seed(mut self, seed: impl Into<Option<u64>>) -> Self {
        self.seed = seed.into();
        self
    }

    /// With the folder or file of the weights; `None`: nobody knows.
    #[must_use]
    pub fn checkpoint(mut self, path: impl Into<Option<String>>) -> Self {
        self.checkpoint = path.into();
        self
    }
}

/// What was told, and the parameters as they were loaded.
#[derive(Default)]
pub(crate) struct Program {
    pub(crate) description: Description,
    /// Settings and seed of the sampler, where it told them itself.
    pub(crate) sampler: Option<(Value, u64)>,
    /// Where the parameters lie, for a program that does not say it.
    pub(crate) device: Option<String>,
    weights: Vec<(Value, u64)>,
    weight_names: HashSet<String>,
}

impl Program {
    /// Notes a parameter by the xxh3 of its bytes; a name counts once.
    pub(crate) fn add_weight(&mut self, name: &str, dtype: Dtype, shape: &[usize], digest: u64) {
        if self.weight_names.insert(name.to_string()) {
            let row = json!({"name": name, "dtype": dtype.torch_word(), "shape": shape});
            self.weights.push((row, digest));
        }
    }

    /// Writes the `open` frame.
    pub(crate) fn open(&self, writer: &mut Writer) -> Result<()> {
        let digests: Vec<u8> = self.weights.iter().flat_map(|(_, digest)| digest.to_le_bytes()).collect();
        let shape = [self.weights.len()];
        let tensor = TensorRef { name: "weights/digest", dtype: Dtype::U64, shape: &shape, data: &digests };
        let tensors = if self.weights.is_empty() { vec![] } else { vec![tensor] };
        writer.frame("open", &self.metadata(), &tensors)
    }

    /// Sampling settings and seed: what the program says, else what its sampler said.
    pub(crate) fn sampling(&self) -> (&Value, Option<u64>) {
        let Description { sampling, seed, .. } = &self.description;
        match &self.sampler {
            Some((own, number)) => (if sampling.is_null() { own } else { sampling }, seed.or(Some(*number))),
            None => (sampling, *seed),
        }
    }

    fn metadata(&self) -> Map<String, Value> {
        let description = &self.description;
        let told = |text: &str| (!text.is_empty()).then(|| Value::from(text));
        let held = self.weights.first().map(|(row, _)| row["dtype"].clone());
        let implementation = if description.implementation.is_empty() { "native" } else { &description.implementation };
        let mut versions = Map::new();
        versions.insert("tracekit".into(), Value::from(env!("CARGO_PKG_VERSION")));
        for (name, version) in &description.versions {
            versions.insert(name.clone(), Value::from(version.as_str()));
        }
        let argv: Vec<String> = std::env::args().collect();
        let cwd = std::env::current_dir().map(|path| path.display().to_string()).unwrap_or_default();
        let (sampling, seed) = self.sampling();
        let weights: Vec<&Value> = self.weights.iter().map(|(row, _)| row).collect();
        object(json!({
            "format": 1,
            "implementation": implementation,
            "versions": versions,
            "device": told(&description.device).or(self.device.as_deref().map(Value::from)),
            "dtype": told(&description.dtype).or(held),
            "model": description.model,
            "sampling": sampling,
            "seed": seed,
            "checkpoint": description.checkpoint,
            "command": {"argv": argv, "cwd": cwd},
            "recorder": crate::settings::as_asked(),
            "follow": crate::settings::followed(),
            "weights": weights,
        }))
    }
}
