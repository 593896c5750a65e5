//! The files of a CosyVoice3 folder, the numbers of its `cosyvoice3.yaml`, and the speech tokens that are written.

use std::collections::HashMap;
use std::path::Path;

use safetensors::tensor::{serialize_to_file, Dtype, TensorView};
use tracekit::repetition_aware::RepetitionAware;
use yaml_rust2::{Yaml, YamlLoader};

use crate::trouble::{trouble, Result};

/// The weights.
pub const WEIGHTS: &str = "llm.rl.safetensors";
/// The folder of the Qwen2 inside.
pub const INNER: &str = "CosyVoice-BlankEN";
/// Rows behind the speech tokens: sos, eos, task id, fill and others. Each of them stops the speech.
const RESERVED: usize = 200;

/// What `cosyvoice3.yaml` says of the language model.
#[derive(Clone, Debug)]
pub struct Settings {
    pub speech_token_size: usize,
    pub ras: RepetitionAware,
}

impl Settings {
    /// Reads `cosyvoice3.yaml`; its tags (`!new:`, `!name:`) are left out, nothing is made of them.
    pub fn load(folder: &Path) -> Result<Self> {
        let path = folder.join("cosyvoice3.yaml");
        let text = std::fs::read_to_string(&path)
            .map_err(|error| trouble(format!("{}: cannot be read: {error}", path.display())))?;
        Self::parse(&text).map_err(|error| trouble(format!("{}: {error}", path.display())))
    }

    fn parse(text: &str) -> Result<Self> {
        let documents = YamlLoader::load_from_str(text).map_err(|error| trouble(format!("is no YAML: {error}")))?;
        let llm = documents.first().map_or(&Yaml::BadValue, |whole| &whole["llm"]);
        let sampling = &llm["sampling"];
        Ok(Self {
            speech_token_size: count(llm, "llm", "speech_token_size")?,
            ras: RepetitionAware::new(
                number(sampling, "top_p")?,
                count(sampling, "llm.sampling", "top_k")?,
                count(sampling, "llm.sampling", "win_size")?,
                number(sampling, "tau_r")?,
            ),
        })
    }

    /// Rows of the speech embedding.
    pub fn rows(&self) -> usize {
        self.speech_token_size + RESERVED
    }

    pub fn sos(&self) -> u32 {
        self.speech_token_size as u32
    }

    pub fn eos(&self) -> u32 {
        self.speech_token_size as u32 + 1
    }

    pub fn task_id(&self) -> u32 {
        self.speech_token_size as u32 + 2
    }

    /// Every reserved row.
    pub fn stop_tokens(&self) -> Vec<u32> {
        (self.speech_token_size as u32..self.rows() as u32).collect()
    }

    /// What a row of the speech embedding says.
    pub fn text(&self, id: u32) -> String {
        match id.checked_sub(self.speech_token_size as u32) {
            None => format!("<speech {id}>"),
            Some(0) => "<sos>".into(),
            Some(1) => "<eos>".into(),
            Some(2) => "<task_id>".into(),
            Some(3) => "<fill>".into(),
            Some(_) => format!("<stop {id}>"),
        }
    }
}

fn count(of: &Yaml, place: &str, name: &str) -> Result<usize> {
    let found = of[name].as_i64().and_then(|value| usize::try_from(value).ok()).filter(|&value| value < 1 << 31);
    found.ok_or_else(|| trouble(format!("{place}.{name} is no count")))
}

fn number(of: &Yaml, name: &str) -> Result<f64> {
    let value = of[name].as_f64().or_else(|| of[name].as_i64().map(|whole| whole as f64));
    value.filter(|value| value.is_finite()).ok_or_else(|| trouble(format!("llm.sampling.{name} is no number")))
}

/// Writes `segment_0`, `segment_1` ... under a scratch name, then renames.
pub fn write_tokens(path: &Path, segments: &[Vec<u32>]) -> Result<()> {
    let bytes: Vec<Vec<u8>> =
        segments.iter().map(|ids| ids.iter().flat_map(|&id| i64::from(id).to_le_bytes()).collect()).collect();
    let mut views = HashMap::new();
    for (index, (ids, data)) in segments.iter().zip(&bytes).enumerate() {
        let view = TensorView::new(Dtype::I64, vec![ids.len()], data).map_err(|error| trouble(error.to_string()))?;
        views.insert(format!("segment_{index}"), view);
    }
    let scratch = path.with_extension("part");
    serialize_to_file(views, None, &scratch)
        .map_err(|error| error.to_string())
        .and_then(|()| std::fs::rename(&scratch, path).map_err(|error| error.to_string()))
        .map_err(|error| trouble(format!("{}: cannot be written: {error}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    const YAML: &str = "
__set_seed1: !apply:random.seed [1986]
llm_input_size: 64
llm: !new:cosyvoice.llm.llm.CosyVoice3LM
    llm_input_size: !ref <llm_input_size>
    speech_token_size: 6561
    sampling: !name:cosyvoice.utils.common.ras_sampling
        top_p: 0.8
        top_k: 25
        win_size: 10
        tau_r: 0.1
";

    #[test]
    fn tags_are_data() {
        let settings = Settings::parse(YAML).expect("sound");
        assert_eq!((settings.speech_token_size, settings.rows()), (6561, 6761));
        assert_eq!(settings.ras, RepetitionAware::new(0.8, 25, 10, 0.1));
        assert_eq!(settings.stop_tokens().len(), 200);
        assert_eq!((settings.text(3).as_str(), settings.text(6563).as_str()), ("<speech 3>", "<task_id>"));
    }

    #[test]
    fn what_is_missing_is_named() {
        for (from, to, named) in [
            ("top_k: 25", "top_k: many", "llm.sampling.top_k"),
            ("tau_r: 0.1", "", "llm.sampling.tau_r"),
            ("speech_token_size: 6561", "speech_token_size: -1", "llm.speech_token_size"),
        ] {
            let error = Settings::parse(&YAML.replace(from, to)).expect_err("missing").to_string();
            assert!(error.contains(named), "{error}");
        }
        assert!(Settings::parse("llm: [").is_err() && Settings::parse("").is_err());
    }
}
