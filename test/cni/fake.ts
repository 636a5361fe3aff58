/**
 * CNI plugins that do what a test says and write down what they were told: shell scripts in a directory of their own.
 *
 * `on(plugin, COMMAND, script)` replaces an answer; `calls()` is everything that was run, in order.
 */
import { chmodSync, existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { TestContext } from 'node:test'

const SCRIPT = `#!/bin/sh
dir=\${0%/*}; me=\${0##*/}
conf=$(cat)
printf '{"plugin":"%s","command":"%s","containerId":"%s","netns":"%s","ifname":"%s","args":"%s","path":"%s","conf":%s}\\n' \\
  "$me" "$CNI_COMMAND" "$CNI_CONTAINERID" "$CNI_NETNS" "$CNI_IFNAME" "$CNI_ARGS" "$CNI_PATH" "$conf" >> "$dir/calls"
if [ -f "$dir/$me.$CNI_COMMAND" ]; then . "$dir/$me.$CNI_COMMAND"; exit; fi
case $CNI_COMMAND in
VERSION) echo '{"cniVersion":"1.1.0","supportedVersions":["0.4.0","1.0.0","1.1.0"]}';;
ADD) echo '{"cniVersion":"1.1.0","interfaces":[{"name":"eth0","mac":"02:00:00:00:00:01","sandbox":"/ns"}],"ips":[{"interface":0,"address":"10.1.2.3/24","gateway":"10.1.2.1"}],"routes":[{"dst":"0.0.0.0/0"}],"dns":{"nameservers":["10.1.2.1"],"domain":"'$me'"}}';;
esac
`

export interface Call {
  readonly plugin: string
  readonly command: string
  readonly containerId: string
  readonly netns: string
  readonly ifname: string
  readonly args: string
  readonly path: string
  readonly conf: Record<string, unknown>
}

export class FakePlugins {
  readonly dir = mkdtempSync(join(tmpdir(), 'noid-cni-'))

  constructor(t: TestContext, ...names: string[]) {
    t.after(() => rmSync(this.dir, { recursive: true, force: true }))
    for (const name of names) {
      writeFileSync(join(this.dir, name), SCRIPT)
      chmodSync(join(this.dir, name), 0o755)
    }
  }

  on(plugin: string, command: string, script: string): void {
    writeFileSync(join(this.dir, `${plugin}.${command}`), script)
  }

  calls(command?: string): Call[] {
    const file = join(this.dir, 'calls')
    if (!existsSync(file)) return []
    return readFileSync(file, 'utf8')
      .trim()
      .split('\n')
      .map((l) => JSON.parse(l) as Call)
      .filter((c) => command === undefined || c.command === command)
  }
}
