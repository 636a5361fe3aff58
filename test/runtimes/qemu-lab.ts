/** What tests of the qemu runtime need of the machine. */
import { find } from '../../src/images/run.ts'
import { programPath } from '../../src/runtimes/qemu/machine.ts'

/** Why no VM can be booted here, or false. */
export function qemuSkip(): string | false {
  if (process.arch !== 'x64') return 'needs an x86-64 machine'
  const missing = ['qemu-system-x86_64', 'qemu-img'].filter((p) => programPath(p) === undefined)
  const tools = ['apt-get', 'dpkg-deb'].filter((p) => find(p) === undefined)
  return missing.length + tools.length > 0 && `needs ${[...missing, ...tools].join(', ')}`
}
