//! A pod's life: `manager` admits it (`admission`, `allocation`) and starts and ends its worker; `plan` and `status`
//! decide, `worker` carries out.

pub mod admission;
pub mod allocation;
pub mod manager;
pub mod memory;
pub mod ops;
pub mod plan;
pub mod preemption;
pub mod publish;
pub mod resize;
pub mod start;
pub mod status;
pub mod worker;
