//! The past: what every window held, kept on disk, and questions about it.
//!
//! ```text
//!   netmond ── a reading every 10 s ──▶ record ── judges ──▶ incidents
//!                                          │  └── counts ──▶ series
//!                                          ▼
//!                                        store      SQLite: windows, samples, sums of hours, findings, gaps, series
//!                                          │
//!   gateway ◀── the tool's own report ── replay
//! ```
//!
//! A tool's `report` is pure, so a sample of an hour ago is answered by the code that answers one of now.

pub mod coverage;
pub mod hook;
pub mod incidents;
mod plan;
pub mod record;
pub mod replay;
pub mod series;
pub mod store;
pub mod stream;
pub mod time;
