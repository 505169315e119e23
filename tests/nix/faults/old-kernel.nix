# expect: needs Linux 5.10 or newer, and this system boots 5.4.290
{
  boot.kernelPackages.kernel.version = "5.4.290";
}
