pub fn sample() -> u64 {
    rustix::system::sysinfo().loads[0]
}
