//! Which vector instructions the kernels run with.
//!
//! Contract: the widest that this machine has, unless the environment's [`VARIABLE`] names another; one choice for the life of
//! the process. A choice that cannot be had is an error when a device is made, never a silent other one. Matrix products of
//! the `gemm` crate make their own choice, which no variable changes.
use std::sync::OnceLock;

/// Environment variable that names the instructions: `avx512`, `avx2` or `portable`.
pub const VARIABLE: &str = "SYNCMARK_CPU_INSTRUCTIONS";

/// A set of vector instructions that every kernel has been compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Instructions {
    /// AVX-512 F, BW, DQ and VL: sixteen lanes, 32 registers.
    Avx512,
    /// AVX2 with FMA: eight lanes, 16 registers.
    Avx2,
    /// What every processor of the target has.
    Portable,
}

impl Instructions {
    /// All of them, widest first.
    pub const ALL: [Self; 3] = [Self::Avx512, Self::Avx2, Self::Portable];

    /// As the variable writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Avx512 => "avx512",
            Self::Avx2 => "avx2",
            Self::Portable => "portable",
        }
    }

    /// Whether this processor has them.
    pub fn available(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => {
                use std::is_x86_feature_detected as has;
                let foundation = has!("avx512f") && has!("avx512bw") && has!("avx512dq");
                foundation && has!("avx512vl") && Self::Avx2.available()
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
            #[cfg(not(target_arch = "x86_64"))]
            Self::Avx512 | Self::Avx2 => false,
            Self::Portable => true,
        }
    }

    /// The widest that this processor has.
    fn widest() -> Self {
        let found = Self::ALL.into_iter().find(|set| set.available());
        found.expect("portable instructions are always there")
    }

    /// What a value of [`VARIABLE`] asks for; without one, the widest.
    ///
    /// # Errors
    /// A name that is none, or that of instructions that this processor lacks.
    pub fn asked_for(value: Option<&str>) -> Result<Self, String> {
        let Some(value) = value else {
            return Ok(Self::widest());
        };
        let names = Self::ALL.map(Self::name).join(", ");
        let Some(set) = Self::ALL.into_iter().find(|set| set.name() == value) else {
            return Err(format!(
                "{VARIABLE} is \"{value}\": write one of {names}, or unset it for the widest that this processor has"
            ));
        };
        if set.available() {
            Ok(set)
        } else {
            Err(format!(
                "{VARIABLE} is \"{value}\", which this processor does not have: unset it, which takes {}",
                Self::widest().name()
            ))
        }
    }
}

/// What the environment asks for.
///
/// # Errors
/// See [`Instructions::asked_for`].
pub fn from_environment() -> Result<Instructions, String> {
    let value = std::env::var_os(VARIABLE);
    let value = value.as_ref().map(|value| value.to_string_lossy());
    Instructions::asked_for(value.as_deref())
}

/// What kernels of this process run with. Devices are only made where the environment's choice can be had, so what stands
/// in for an impossible one is never seen in a run.
#[inline]
pub(crate) fn instructions() -> Instructions {
    static CHOSEN: OnceLock<Instructions> = OnceLock::new();
    *CHOSEN.get_or_init(|| from_environment().unwrap_or_else(|_| Instructions::widest()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_taken_as_it_is_and_another_refused_with_the_names() {
        assert_eq!(
            Instructions::asked_for(Some("portable")),
            Ok(Instructions::Portable)
        );
        let error = Instructions::asked_for(Some("sse9")).unwrap_err();
        assert!(
            error.contains("\"sse9\": write one of avx512, avx2, portable"),
            "{error}"
        );
    }

    #[test]
    fn without_a_name_it_is_the_first_that_is_there() {
        let found = Instructions::asked_for(None).unwrap();
        for set in Instructions::ALL {
            let asked = Instructions::asked_for(Some(set.name()));
            assert_eq!(asked.is_ok(), set.available(), "{asked:?}");
            if set == found {
                return;
            }
            assert!(
                asked
                    .unwrap_err()
                    .contains("which this processor does not have"),
                "{set:?} is wider and there"
            );
        }
        panic!("{found:?} is none of all");
    }
}
