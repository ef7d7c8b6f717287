//! NVIDIA's functions, as pointers into the very files that [`super::library`] has found and `doctor` shows.
//!
//! `cudarc` has their types; its own loader asks for other names first (`libcudnn.so`), under which a machine may hold another version,
//! and panics where something is missing.
//!
//! Contract: [`load`] comes before any call and says what is missing; after it, calls cannot fail to find anything.
pub(crate) mod cublas;
pub(crate) mod cublaslt;
pub(crate) mod cudnn;
pub(crate) mod cudnn_norm;
pub(crate) mod driver;
pub(crate) mod graphs;
pub(crate) mod nvrtc;

use super::library::Missing;

/// Everything that a device calls, but for [`graphs`], [`cublaslt`] and [`cudnn_norm`], which are loaded where they are asked for.
///
/// # Errors
/// The first library that is missing, or that lacks a function.
pub(crate) fn load() -> Result<(), Missing> {
    driver::load()?;
    nvrtc::load()?;
    cublas::load()?;
    cudnn::load()
}

/// A table of a library's functions, and a function of the same name for each.
macro_rules! functions {
    ($library:ident $(fn $name:ident($($argument:ident: $type:ty),* $(,)?) -> $result:ty;)*) => {
        #[allow(non_snake_case, reason = "the names are NVIDIA's")]
        struct Table {
            $($name: unsafe extern "C" fn($($type),*) -> $result),*
        }

        static TABLE: std::sync::OnceLock<Result<Table, $crate::backend::cuda::library::Missing>> = std::sync::OnceLock::new();

        /// Finds the library and all of these functions in it.
        ///
        /// # Errors
        /// Why they cannot be used.
        pub(crate) fn load() -> Result<(), $crate::backend::cuda::library::Missing> {
            use $crate::backend::cuda::library::{self, Library};
            let table = TABLE.get_or_init(|| {
                // cuBLAS finds its other half by name, which must be this one.
                if Library::$library == Library::Cublas {
                    library::load(Library::CublasLt)?;
                }
                let handle = library::load(Library::$library)?.handle;
                Ok(Table {
                    // SAFETY: the types are those of NVIDIA's headers.
                    $($name: *unsafe { handle.get(concat!(stringify!($name), "\0").as_bytes()) }.map_err(|_| {
                        library::Missing {
                            library: Library::$library,
                            reason: concat!("it has no function ", stringify!($name)).to_owned(),
                        }
                    })?),*
                })
            });
            table.as_ref().map(|_| ()).map_err(Clone::clone)
        }

        fn table() -> &'static Table {
            match TABLE.get() {
                Some(Ok(table)) => table,
                _ => unreachable!("nothing is called before its library is loaded"),
            }
        }

        $(
            /// See NVIDIA's documentation of this function.
            ///
            /// # Safety
            /// As there.
            #[allow(non_snake_case, clippy::too_many_arguments, reason = "as NVIDIA has it")]
            pub(crate) unsafe fn $name($($argument: $type),*) -> $result {
                // SAFETY: the caller's promise.
                unsafe { (table().$name)($($argument),*) }
            }
        )*
    };
}
use functions;
