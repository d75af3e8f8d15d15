//! Devices: what answers on the bus.

pub mod events;
pub mod power;
pub mod serial;
pub mod virtio;

use crate::accel::Vm;

/// Raises an edge-triggered interrupt. An accelerator that refuses has no such pin, and then nobody listens.
fn pulse(vm: &dyn Vm, gsi: u32) {
    for level in [true, false] {
        if let Err(error) = vm.set_irq(gsi, level) {
            tracing::debug!(gsi, %error, "the interrupt is lost");
        }
    }
}

#[cfg(test)]
pub(crate) mod testing {
    //! A machine of an accelerator that executes nothing and remembers its interrupts.

    use std::sync::{Arc, Condvar, Mutex};
    use std::time::Duration;

    use crate::accel::{Error, ErrorKind, MemoryRegion, Msi, Result, Vcpu, Vm, VmState};

    #[derive(Default)]
    pub(crate) struct FakeVm {
        edges: Mutex<Vec<u32>>,
        came: Condvar,
    }

    impl FakeVm {
        pub(crate) fn new() -> Arc<Self> {
            Arc::default()
        }

        /// Rising edges of `gsi` so far.
        pub(crate) fn edges(&self, gsi: u32) -> usize {
            self.edges
                .lock()
                .unwrap()
                .iter()
                .filter(|seen| **seen == gsi)
                .count()
        }

        /// Waits until there were `count` rising edges of `gsi`.
        pub(crate) fn wait_edges(&self, gsi: u32, count: usize) {
            let enough = |seen: &mut Vec<u32>| seen.iter().filter(|seen| **seen == gsi).count() < count;
            let seen = self.edges.lock().unwrap();
            let (_seen, timeout) = self
                .came
                .wait_timeout_while(seen, Duration::from_secs(10), enough)
                .unwrap();
            assert!(!timeout.timed_out(), "no interrupt has come");
        }
    }

    fn no<T>() -> Result<T> {
        Err(Error::new(
            ErrorKind::Unavailable,
            "this machine executes nothing",
        ))
    }

    impl Vm for FakeVm {
        unsafe fn map_memory(&self, _: u32, _: MemoryRegion) -> Result<()> {
            Ok(())
        }
        fn unmap_memory(&self, _: u32) -> Result<()> {
            Ok(())
        }
        fn take_dirty_pages(&self, _: u32) -> Result<Vec<u64>> {
            Ok(vec![0])
        }
        fn create_vcpu(&self, _: u8) -> Result<Box<dyn Vcpu>> {
            no()
        }
        fn set_irq(&self, gsi: u32, level: bool) -> Result<()> {
            if level {
                self.edges.lock().unwrap().push(gsi);
                self.came.notify_all();
            }
            Ok(())
        }
        fn signal_msi(&self, _: Msi) -> Result<()> {
            no()
        }
        fn save(&self) -> Result<VmState> {
            no()
        }
        fn restore(&self, _: &VmState) -> Result<()> {
            no()
        }
    }
}
