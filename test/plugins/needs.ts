/** What the kit's tests need of the machine: why they cannot run, or false. */
import { spawnSync } from 'node:child_process'

export function missing(): string | false {
  if (process.getuid?.() !== 0) return 'needs root'
  const tool = ['ip', 'nsenter', 'unshare', 'ping'].find((t) => spawnSync('sh', ['-c', `command -v ${t}`]).status !== 0)
  return tool === undefined ? false : `needs ${tool}`
}
