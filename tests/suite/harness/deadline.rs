//! A deadline for a hanging run, which would otherwise print nothing.

use std::{fs, process::exit, sync::Once, thread, time::Duration};

use super::patience;

/// Ends this process after its deadline ([`crate::TIME_LIMIT`] plus the requested duration of the soak), and prints
/// what still runs.
pub fn watch() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let soaks = std::env::var("NETMON_SOAK_SECONDS").ok().and_then(|seconds| seconds.parse().ok()).unwrap_or(0);
        let end = patience(crate::TIME_LIMIT) + Duration::from_secs(soaks);
        thread::spawn(move || {
            thread::sleep(end);
            eprintln!("the tests did not end within {} s; still there:\n{}", end.as_secs(), tasks());
            exit(1);
        });
    });
}

/// The threads of this process, named for their tests, and its children, each with its position in the kernel.
fn tasks() -> String {
    let children = fs::read_dir("/proc").into_iter().flatten().flatten().map(|entry| entry.path());
    let parent = format!("PPid:\t{}\n", std::process::id());
    let children =
        children.filter(|path| fs::read_to_string(path.join("status")).is_ok_and(|status| status.contains(&parent)));
    let threads = fs::read_dir("/proc/self/task").into_iter().flatten().flatten().map(|entry| entry.path());
    let mut said = String::new();
    for task in threads.chain(children) {
        let read = |name| fs::read_to_string(task.join(name)).unwrap_or_default().replace('\0', " ");
        let at: Vec<_> =
            read("stack").lines().take(4).map(|line| line.trim_start_matches("[<0>] ").to_owned()).collect();
        let line = if task.starts_with("/proc/self") { read("comm") } else { read("cmdline") };
        said += &format!("{} {}: {}\n", task.display(), line.trim_end(), at.join(" < "));
    }
    said
}
