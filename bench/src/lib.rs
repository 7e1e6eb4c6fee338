//! Repeatable measurements of what `docs/architecture.md` budgets: speed, memory and disk of a control plane, and how
//! long a local cluster takes.
//!
//! [`rows`] lists the measurements; each starts what it needs from nothing and stops it again. [`plane`] starts a control
//! plane of real programs, Skiff's or (with `--peer DIR`) Kubernetes' own, both with the same flags, certificates and
//! load. [`load`] is the client, [`watching`] that of many watches, [`process`] reads the kernel's figures, [`report`] prints a Markdown table with ratios
//! from that one run. `bench/README.md` has the commands and what bounds each figure.

pub mod load;
pub mod objects;
pub mod plane;
pub mod process;
pub mod report;
pub mod rows;
pub mod watching;
