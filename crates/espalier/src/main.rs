//! The binary: everything it does is in the library's `cli`.

#[global_allocator]
static ALLOCATOR: espalier::kernels::allocator::LargePages =
    espalier::kernels::allocator::LargePages;

fn main() -> std::process::ExitCode {
    espalier::cli::main()
}
