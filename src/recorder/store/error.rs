//! What SQLite's errors mean for a recording.

use std::path::Path;

use rusqlite::ErrorCode;

use super::{Kind, Trouble};

/// What went wrong with the file.
pub fn trouble(path: &Path, error: &rusqlite::Error) -> Trouble {
    let kind = match error.sqlite_error_code() {
        Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => Kind::Corrupt,
        Some(ErrorCode::DiskFull) => Kind::Full,
        Some(ErrorCode::ReadOnly | ErrorCode::PermissionDenied | ErrorCode::CannotOpen) => Kind::Denied,
        // A file system that is full, or was remounted read-only, refuses the write itself.
        Some(ErrorCode::SystemIoFailure) => io_kind(error),
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => Kind::InUse,
        // A table that is not there, or another one than ours.
        Some(ErrorCode::Unknown) if error.to_string().contains("no such") => Kind::Corrupt,
        _ => Kind::Other,
    };
    Trouble { kind, path: path.into(), reason: error.to_string() }
}

/// SQLite says only which call failed; the errno of a write is the system's last.
fn io_kind(error: &rusqlite::Error) -> Kind {
    let writes =
        [rusqlite::ffi::SQLITE_IOERR_WRITE, rusqlite::ffi::SQLITE_IOERR_SHMSIZE, rusqlite::ffi::SQLITE_IOERR_TRUNCATE];
    match error.sqlite_error().map(|e| e.extended_code) {
        Some(code) if writes.contains(&code) => Kind::Full,
        _ => Kind::Other,
    }
}

/// The same for what the system refuses.
pub fn io_trouble(path: &Path, error: &std::io::Error) -> Trouble {
    let kind = match error.kind() {
        std::io::ErrorKind::NotFound => Kind::Absent,
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => Kind::Full,
        std::io::ErrorKind::PermissionDenied | std::io::ErrorKind::ReadOnlyFilesystem => Kind::Denied,
        _ => Kind::Other,
    };
    Trouble { kind, path: path.into(), reason: error.to_string() }
}
