//! Which accelerator a machine gets: what `--accel` says.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use super::{Accelerator, Error, ErrorKind, Kvm, Result, Soft};

/// What was asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Choice {
    /// KVM where it can run kernels, otherwise the software processor.
    #[default]
    Auto,
    /// KVM or nothing.
    Kvm,
    /// The software processor.
    Soft,
}

impl FromStr for Choice {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "auto" => Ok(Self::Auto),
            "kvm" => Ok(Self::Kvm),
            "soft" => Ok(Self::Soft),
            _ => Err(Error::new(
                ErrorKind::Invalid,
                format!("there is no accelerator \"{text}\": use auto, kvm or soft"),
            )),
        }
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Auto => "auto",
            Self::Kvm => "kvm",
            Self::Soft => "soft",
        })
    }
}

/// What came of it.
pub struct Chosen {
    /// The accelerator.
    pub accelerator: Arc<dyn Accelerator>,
    /// Why it is not KVM, though it could have been.
    pub why_not_kvm: Option<Error>,
}

/// Makes the accelerator.
pub fn choose(choice: Choice) -> Result<Chosen> {
    let why_not_kvm = match choice {
        Choice::Soft => None,
        Choice::Kvm | Choice::Auto => match Kvm::new() {
            Ok(kvm) => {
                return Ok(Chosen {
                    accelerator: Arc::new(kvm),
                    why_not_kvm: None,
                });
            }
            Err(error) if choice == Choice::Kvm => return Err(error),
            Err(error) => Some(error),
        },
    };
    Ok(Chosen {
        accelerator: Arc::new(Soft::new()),
        why_not_kvm,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_have_names() {
        for choice in [Choice::Auto, Choice::Kvm, Choice::Soft] {
            assert_eq!(choice.to_string().parse::<Choice>().unwrap(), choice);
        }
        let error = "tcg".parse::<Choice>().unwrap_err();
        assert_eq!(
            error.to_string(),
            "there is no accelerator \"tcg\": use auto, kvm or soft"
        );
    }

    #[test]
    fn something_is_always_there() {
        let chosen = choose(Choice::Auto).unwrap();
        match chosen.why_not_kvm {
            None => assert_eq!(chosen.accelerator.name(), "kvm"),
            Some(error) => {
                assert_eq!(chosen.accelerator.name(), "soft");
                assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
                assert!(matches!(choose(Choice::Kvm), Err(other) if other.kind() == ErrorKind::Unavailable));
            }
        }
        assert_eq!(choose(Choice::Soft).unwrap().accelerator.name(), "soft");
    }
}
