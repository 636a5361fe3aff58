/**
 * `npm start [-- quickstart's flags]`: from a fresh clone to two VMs on a network, in one command.
 */
import { spawnSync } from 'node:child_process'
import { join } from 'node:path'
import { ensureModules, ensureTools, environment, fail, node, root } from './setup.mjs'

ensureModules()
const args = process.argv.slice(2)
ensureTools(
  args.some((a, i) => a === '--runtime=qemu' || (a === '--runtime' && args[i + 1] === 'qemu')) ? 'qemu' : 'start',
)
const run = spawnSync(node, [join(root, 'bin', 'noid.mjs'), 'quickstart', ...args], {
  cwd: root,
  stdio: 'inherit',
  env: environment(),
})
if (run.error) fail(`the Node that noid brings along could not be started: ${run.error.message}`)
process.exit(run.status ?? 1)
