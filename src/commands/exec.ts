import { Flags } from '@oclif/core'
import { vmNamed } from '../cli/active.ts'
import { vmArg } from '../cli/args.ts'
import { NoidCommand } from '../cli/base.ts'
import { LOGIN_SHELL, parseEnv, splitExec } from '../cli/exec-args.ts'
import { pipeExec } from '../client/exec.ts'
import { NoidError } from '../errors.ts'

export default class Exec extends NoidCommand {
  static override summary = 'Run a command in a VM; without one, open its shell.'
  static override description =
    "stdin, stdout, stderr, signals and the exit code are the command's own. Everything after -- belongs to the command."
  static override usage = 'exec [NAME] [-t] [-e K=V]... [-w DIR] [-u USER] [-- COMMAND...]'
  static override examples = [
    '<%= config.bin %> exec web -- ip addr show',
    '<%= config.bin %> exec web',
    'tar c . | <%= config.bin %> exec web -w /srv -- tar x',
    '<%= config.bin %> exec web -e LANG=C -u nobody -- id',
  ]
  static override args = { name: vmArg }
  static override flags = {
    env: Flags.string({
      char: 'e',
      summary: 'Set a variable: K=V, or K to pass on your own.',
      multiple: true,
      multipleNonGreedy: true,
      helpValue: 'K=V',
    }),
    workdir: Flags.string({ char: 'w', summary: 'Directory to start in.', helpValue: 'DIR' }),
    user: Flags.string({ char: 'u', summary: 'User to run as.', helpValue: 'USER' }),
    tty: Flags.boolean({ char: 't', summary: 'Give the command a terminal.' }),
  }

  async run(): Promise<void> {
    const { own, command } = splitExec(this.argv)
    const { args, flags } = await this.parse(Exec, [...own])
    const name = vmNamed(args.name)
    if (this.jsonEnabled()) {
      throw new NoidError('INVALID_INPUT', {
        what: "exec has no --json: its output is the command's own",
        hint: 'leave out --json',
      })
    }
    const shell = command.length === 0
    const tty = flags.tty || (shell && process.stdin.isTTY && process.stdout.isTTY)
    const { socket, head } = await (await this.daemon(flags)).exec(name, {
      argv: shell ? [...LOGIN_SHELL] : [...command],
      env: {
        ...(tty && process.env.TERM ? { TERM: process.env.TERM } : {}),
        ...parseEnv(flags.env ?? [], process.env),
      },
      cwd: flags.workdir,
      user: flags.user,
      tty,
      rows: tty ? process.stdout.rows : undefined,
      cols: tty ? process.stdout.columns : undefined,
    })
    process.exit(await pipeExec(socket, head, { tty }))
  }
}
